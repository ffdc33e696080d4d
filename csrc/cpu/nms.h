#pragma once

#include <ATen/core/Tensor.h>

namespace maskrcnn_plus {

// Non-maximum suppression within each group. See ops.cpp.
at::Tensor batched_nms(
    const at::Tensor& boxes,
    const at::Tensor& scores,
    const at::Tensor& groups,
    double iou_threshold);

} // namespace maskrcnn_plus
