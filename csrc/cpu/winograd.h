// 3 x 3 convolutions of stride 1 by Winograd's minimal filtering, F(4 x 4, 3 x 3).

#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace maskrcnn_plus {

// input: float32 [N, C, H, W]; weight: [36, panels, C, 32], the transformed kernels of K output channels, padded to whole
// panels of 32; bias: [K]. C and K are multiples of 16. Returns [N, K, H, W] in channels_last memory, padding 1.
at::Tensor winograd_conv3x3(
    const at::Tensor& input,
    const at::Tensor& weight,
    const at::Tensor& bias,
    bool relu);

// input: float32 [N, C, H, W]; grad: [N, K, H, W], of the output. Returns the gradient of the 3 x 3 kernels
// [K, C, 3, 3], whose sums are float32.
at::Tensor winograd_conv3x3_backward_weight(const at::Tensor& input, const at::Tensor& grad);

} // namespace maskrcnn_plus
