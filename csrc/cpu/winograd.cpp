// Winograd convolution (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016, Sec. 4): a 4 x 4 tile of
// the output takes 36 multiplications a pair of channels in place of 144. Sums are float32; the error is a few times that
// of the plain sum, about 1e-6 of the output's magnitude.

#include "winograd.h"

#include <ATen/Parallel.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

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
constexpr int64_t kMostFloats = 8 << 20; // of the transformed tiles that are multiplied at once for a gradient

WinogradKernels kernels() {
#if defined(__x86_64__)
  const std::string capability = cpu_capability();
  if (capability == "AVX512") {
    return {winograd_avx512::convolve, winograd_avx512::transform_pair};
  }
  if (capability == "AVX2") {
    return {winograd_avx2::convolve, winograd_avx2::transform_pair};
  }
#endif
  return {winograd_baseline::convolve, winograd_baseline::transform_pair};
}

int64_t round_up(int64_t number, int64_t multiple) {
  return (number + multiple - 1) / multiple * multiple;
}

// G of rows times G of columns (Eq. 5 of the paper, for the points of winograd_tiles.h): [36, 9].
at::Tensor kernel_transforms() {
  constexpr double points[5] = {0.0, 0.75, -0.75, 1.5, -1.5};
  double g[6][3] = {};
  for (int p = 0; p < 5; ++p) {
    double factor = 1.0;
    for (int q = 0; q < 5; ++q) {
      factor *= q == p ? 1.0 : points[p] - points[q];
    }
    for (int power = 0; power < 3; ++power) {
      g[p][power] = std::pow(points[p], power) / factor;
    }
  }
  g[5][2] = 1.0;
  at::Tensor pairs = at::empty({kWinogradPlaces, 9}, at::kFloat);
  float* value = pairs.mutable_data_ptr<float>();
  for (int place = 0; place < kWinogradPlaces; ++place) {
    for (int k = 0; k < 9; ++k) {
      *value++ = static_cast<float>(g[place / 6][k / 3] * g[place % 6][k % 3]);
    }
  }
  return pairs;
}

// The block of all tiles of an input [N, C, H, W] in channels_last memory.
WinogradBlock whole(const at::Tensor& input, int64_t out_channels, const at::Tensor& zeros) {
  WinogradBlock all{};
  all.input = input.const_data_ptr<float>();
  all.zeros = zeros.const_data_ptr<float>();
  all.height = input.size(2);
  all.width = input.size(3);
  all.channels = input.size(1);
  all.out_channels = out_channels;
  all.tiles_y = (all.height + 3) / 4;
  all.tiles_x = (all.width + 3) / 4;
  all.count = input.size(0) * all.tiles_y * all.tiles_x;
  return all;
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
  const at::Tensor packed = weight.contiguous();
  const at::Tensor offsets = bias.contiguous();
  const int64_t images = input.size(0), height = input.size(2), width = input.size(3);
  at::Tensor output = at::empty(
      {images, out_channels, height, width}, input.options().memory_format(at::MemoryFormat::ChannelsLast));
  const at::Tensor zeros = at::zeros({channels}, input.options());

  WinogradBlock all = whole(pixels, out_channels, zeros);
  all.weight = packed.const_data_ptr<float>();
  all.bias = offsets.const_data_ptr<float>();
  all.output = output.mutable_data_ptr<float>();
  all.panels = weight.size(1);
  all.relu = relu;
  const int64_t tiles = all.count;
  const int64_t share = (tiles + at::get_num_threads() - 1) / at::get_num_threads();
  const int64_t size = std::min(kMostTiles, round_up(share, kWinogradRows));
  const WinogradKernel convolve = kernels().convolve;
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

at::Tensor winograd_conv3x3_backward_weight(const at::Tensor& input, const at::Tensor& grad) {
  TORCH_CHECK_VALUE(
      input.dim() == 4 && grad.dim() == 4 && input.size(0) == grad.size(0) && input.size(2) == grad.size(2) &&
          input.size(3) == grad.size(3) && input.size(1) % 16 == 0 && grad.size(1) % 16 == 0,
      "winograd_conv3x3_backward_weight: input and gradient must be [N, C, H, W] and [N, K, H, W], C and K multiples of ",
      "16, got ", input.sizes(), " and ", grad.sizes(), ".");
  TORCH_CHECK_TYPE(
      input.scalar_type() == at::kFloat && grad.scalar_type() == at::kFloat,
      "winograd_conv3x3_backward_weight: both tensors must be float32, got ", input.scalar_type(), " and ",
      grad.scalar_type(), ".");
  const at::Tensor pixels = input.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor gradient = grad.contiguous(at::MemoryFormat::ChannelsLast);
  const int64_t channels = input.size(1), out_channels = grad.size(1);
  const at::Tensor zeros = at::zeros({channels}, input.options());
  at::Tensor result = at::zeros({kWinogradPlaces, channels, out_channels}, input.options());
  WinogradBlock all = whole(pixels, out_channels, zeros);
  all.gradient = gradient.const_data_ptr<float>();
  const int64_t tiles = all.count;
  const int64_t most =
      std::max(kMostTiles, kMostFloats / (kWinogradPlaces * std::max<int64_t>(channels + out_channels, 1)));
  const WinogradKernel transform_pair = kernels().transform_pair;
  for (int64_t first = 0; first < tiles; first += most) {
    all.rows = std::min(most, tiles - first);
    const at::Tensor patches = at::empty({kWinogradPlaces, all.rows, channels}, input.options());
    const at::Tensor products = at::empty({kWinogradPlaces, all.rows, out_channels}, input.options());
    all.patches = patches.mutable_data_ptr<float>();
    all.products = products.mutable_data_ptr<float>();
    run_tasks((all.rows + kMostTiles - 1) / kMostTiles, [&] {
      return [&](int64_t task) {
        WinogradBlock block = all;
        const int64_t start = task * kMostTiles;
        block.first = first + start;
        block.count = std::min(kMostTiles, all.rows - start);
        block.patches += start * channels;
        block.products += start * out_channels;
        transform_pair(block);
      };
    });
    result.baddbmm_(patches.transpose(1, 2), products);
  }
  // Back to 3 x 3 kernels: G^T m G of each.
  return at::mm(kernel_transforms().t(), result.flatten(1))
      .view({3, 3, channels, out_channels})
      .permute({3, 2, 0, 1})
      .contiguous();
}

} // namespace maskrcnn_plus
