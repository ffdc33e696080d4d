// What RoIAlign refuses, with the index of the first offending box.

#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <optional>
#include <vector>

#include "roi_align_box.h"

namespace maskrcnn_plus {

constexpr int64_t kMaxSamplingRatio = 4096; // the work of a bin grows with it

// The map of each box.
inline std::vector<int64_t> levels_of(const std::optional<at::Tensor>& levels, int64_t boxes, int64_t maps) {
  std::vector<int64_t> result(boxes, 0);
  if (levels.has_value()) {
    const at::Tensor contiguous = levels->contiguous();
    const int64_t* data = contiguous.const_data_ptr<int64_t>();
    for (int64_t k = 0; k < boxes; ++k) {
      TORCH_CHECK_VALUE(
          data[k] >= 0 && data[k] < maps, "roi_align: level ", data[k], " of RoI ", k, " is outside [0, ", maps, ").");
      result[k] = data[k];
    }
  }
  return result;
}

template <typename S>
void check_rois(const at::Tensor& rois, const std::vector<int64_t>& levels, const std::vector<Map>& maps) {
  const S* data = rois.const_data_ptr<S>();
  for (int64_t k = 0; k < rois.size(0); ++k) {
    const S* roi = data + k * 5;
    for (int64_t i = 0; i < 5; ++i) {
      TORCH_CHECK_VALUE(
          std::isfinite(roi[i]), "roi_align: RoI ", k, " is not finite: (", roi[0], ", ", roi[1], ", ", roi[2], ", ",
          roi[3], ", ", roi[4], ").");
    }
    TORCH_CHECK_VALUE(
        roi[0] >= 0 && roi[0] < maps[levels[k]].images, "roi_align: batch index ", roi[0], " of RoI ", k,
        " is outside [0, ", maps[levels[k]].images, ").");
  }
}

inline void check_arguments(
    const at::Tensor& rois,
    const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> scales,
    size_t maps,
    const Options& options) {
  TORCH_CHECK_VALUE(maps > 0, "roi_align: there is no feature map.");
  TORCH_CHECK_VALUE(scales.size() == maps, "roi_align: ", maps, " feature maps but ", scales.size(), " spatial scales.");
  TORCH_CHECK_VALUE(
      rois.dim() == 2 && rois.size(1) == 5, "roi_align: rois must be [K, 5] (batch index, x0, y0, x1, y1), got ",
      rois.sizes(), ".");
  TORCH_CHECK_VALUE(
      options.bins_y > 0 && options.bins_x > 0, "roi_align: output size ", options.bins_y, " x ", options.bins_x,
      " must be positive.");
  TORCH_CHECK_VALUE(
      options.sampling_ratio <= kMaxSamplingRatio, "roi_align: sampling_ratio ", options.sampling_ratio,
      " must be at most ", kMaxSamplingRatio, " samples a bin and axis.");
  for (const double scale : scales) {
    TORCH_CHECK_VALUE(std::isfinite(scale) && scale > 0, "roi_align: spatial scale ", scale, " must be positive.");
  }
  if (levels.has_value()) {
    TORCH_CHECK_VALUE(
        levels->dim() == 1 && levels->size(0) == rois.size(0) && levels->scalar_type() == at::kLong,
        "roi_align: levels must be int64 of one entry a RoI.");
  } else {
    TORCH_CHECK_VALUE(maps == 1, "roi_align: levels are needed where there are several feature maps.");
  }
}

} // namespace maskrcnn_plus
