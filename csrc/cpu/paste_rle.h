#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>
#include <tuple>

namespace maskrcnn_plus {

// Masks pasted into an image as compressed COCO run-length encodings. See ops.cpp.
std::tuple<at::Tensor, at::Tensor> paste_masks_rle(
    const at::Tensor& mask_probs,
    const at::Tensor& boxes,
    int64_t height,
    int64_t width,
    double threshold,
    std::string_view rule);

} // namespace maskrcnn_plus
