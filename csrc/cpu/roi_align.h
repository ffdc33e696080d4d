#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace maskrcnn_plus {

// RoIAlign of boxes on the maps of a feature pyramid. See ops.cpp for the meaning of the arguments.
at::Tensor roi_align(
    at::TensorList features,
    const at::Tensor& rois,
    const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales,
    int64_t pooled_height,
    int64_t pooled_width,
    int64_t sampling_ratio,
    bool aligned,
    bool channels_last);

// Its gradient with respect to the maps, whose sizes (N, C, H, W of each) are given.
std::vector<at::Tensor> roi_align_backward(
    const at::Tensor& grad,
    const at::Tensor& rois,
    const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales,
    at::IntArrayRef sizes,
    int64_t sampling_ratio,
    bool aligned,
    bool channels_last);

} // namespace maskrcnn_plus
