// Winograd convolution (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016, Sec. 4): a 4 x 4 tile of
// the output takes 36 multiplications a pair of channels in place of 144. Sums are float32; the error is a few times that
// of the plain sum, about 1e-6 of the output's magnitude.

#include "winograd.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "capability.h"
#include "tasks.h"
#include "winograd_block.h"

#if defined(__x86_64__)
#define TILES_NAMESPACE winograd_avx512
#define TILES_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define TILES_VECTOR_BYTES 64
#define TILES_ROWS 12
#include "winograd_tiles.h"
#undef TILES_NAMESPACE
#undef TILES_TARGET
#undef TILES_VECTOR_BYTES
#undef TILES_ROWS

#define TILES_NAMESPACE winograd_avx2
#define TILES_TARGET __attribute__((target("avx2,fma")))
#define TILES_VECTOR_BYTES 32
#define TILES_ROWS 6
#include "winograd_tiles.h"
#undef TILES_NAMESPACE
#undef TILES_TARGET
#undef TILES_VECTOR_BYTES
#undef TILES_ROWS
#endif

#define TILES_NAMESPACE winograd_baseline
#define TILES_TARGET
#define TILES_VECTOR_BYTES 16
#define TILES_ROWS 6
#include "winograd_tiles.h"

namespace maskrcnn_plus {
namespace {

constexpr int64_t kMostTiles = 48; // of a block, so that its patches stay near the core

WinogradKernel kernel() {
#if defined(__x86_64__)
  const std::string capability = cpu_capability();
  if (capability == "AVX512") {
    return winograd_avx512::convolve;
  }
  if (capability == "AVX2") {
    return winograd_avx2::convolve;
  }
#endif
  return winograd_baseline::convolve;
}

int64_t round_up(int64_t number, int64_t multiple) {
  return (number + multiple - 1) / multiple * multiple;
}

} // namespace

at::Tensor winograd_conv3x3(
    const at::Tensor& input,
    const at::Tensor& weight,
    const at::Tensor& bias,
    bool relu) {
  TORCH_CHECK_VALUE(input.dim() == 4, "winograd_conv3x3: the input must be [N, C, H, W], got ", input.sizes(), ".");
  const int64_t channels = input.size(1);
  const int64_t out_channels = bias.numel();
  TORCH_CHECK_VALUE(
      channels % 16 == 0 && out_channels % 16 == 0 && bias.dim() == 1 && weight.dim() == 4 &&
          weight.size(0) == kWinogradPlaces && weight.size(1) * kWinogradPanel == round_up(out_channels, kWinogradPanel) &&
          weight.size(2) == channels && weight.size(3) == kWinogradPanel,
      "winograd_conv3x3: for an input of ", input.sizes(), " and a bias of ", bias.sizes(), ", both of multiples of 16 ",
      "channels, the weight must be [36, panels, C, 32], got ", weight.sizes(), ".");
  TORCH_CHECK_TYPE(
      input.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat && bias.scalar_type() == at::kFloat,
      "winograd_conv3x3: all tensors must be float32, got ", input.scalar_type(), ", ", weight.scalar_type(), " and ",
      bias.scalar_type(), ".");
  const at::Tensor pixels = input.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor kernels = weight.contiguous();
  const at::Tensor offsets = bias.contiguous();
  const int64_t images = input.size(0), height = input.size(2), width = input.size(3);
  at::Tensor output = at::empty(
      {images, out_channels, height, width}, input.options().memory_format(at::MemoryFormat::ChannelsLast));
  const at::Tensor zeros = at::zeros({channels}, input.options());

  WinogradBlock all;
  all.input = pixels.const_data_ptr<float>();
  all.weight = kernels.const_data_ptr<float>();
  all.bias = offsets.const_data_ptr<float>();
  all.zeros = zeros.const_data_ptr<float>();
  all.output = output.mutable_data_ptr<float>();
  all.height = height;
  all.width = width;
  all.channels = channels;
  all.out_channels = out_channels;
  all.panels = weight.size(1);
  all.tiles_y = (height + 3) / 4;
  all.tiles_x = (width + 3) / 4;
  all.relu = relu;
  const int64_t tiles = images * all.tiles_y * all.tiles_x;
  const int64_t share = (tiles + at::get_num_threads() - 1) / at::get_num_threads();
  const int64_t size = std::min(kMostTiles, round_up(share, kWinogradRows));
  const WinogradKernel convolve = kernel();
  run_tasks(size == 0 ? 0 : (tiles + size - 1) / size, [&] {
    const at::Tensor scratch =
        at::empty({kWinogradPlaces * size * (channels + all.panels * kWinogradPanel)}, input.options());
    return [&, scratch](int64_t task) {
      WinogradBlock block = all;
      block.first = task * size;
      block.count = std::min(size, tiles - block.first);
      block.rows = round_up(block.count, kWinogradRows);
      block.patches = scratch.mutable_data_ptr<float>();
      block.products = block.patches + kWinogradPlaces * size * channels;
      convolve(block);
    };
  });
  return output;
}

} // namespace maskrcnn_plus
