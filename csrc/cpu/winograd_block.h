// What the instruction-set copies of the Winograd kernel share.

#pragma once

#include <cstdint>

namespace maskrcnn_plus {

constexpr int64_t kWinogradPlaces = 36; // of a transformed tile, 6 x 6
constexpr int64_t kWinogradPanel = 32; // output channels that are multiplied at once
constexpr int64_t kWinogradRows = 12; // tiles that are multiplied at once

// Tiles first .. first + count of all 4 x 4 tiles of the output, in the order [N, tiles_y, tiles_x].
struct WinogradBlock {
  const float* input; // [N, H, W, C]
  const float* weight; // [36, panels, C, 32]
  const float* bias; // [K]
  const float* zeros; // [C], a pixel beyond the border
  float* output; // [N, H, W, K]
  const float* gradient; // [N, H, W, K], of the output
  float* patches; // scratch [36, rows, C]
  float* products; // scratch [36, rows, panels * 32]
  int64_t height, width, channels, out_channels, panels;
  int64_t tiles_y, tiles_x;
  int64_t first, count;
  int64_t rows; // of the scratch: count, rounded up to a multiple of 12; or all tiles of a chunk
  bool relu;
};

using WinogradKernel = void (*)(const WinogradBlock& block);

// The kernels of one instruction set.
struct WinogradKernels {
  WinogradKernel convolve;
  WinogradKernel transform_pair; // tiles of input and gradient, for the gradient of the weight
};

} // namespace maskrcnn_plus
