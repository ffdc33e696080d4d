// Autocast rule of RoIAlign: all maps in the widest of their types, boxes in float32 at least, since half precision is too
// coarse for coordinates. The sums are float32 in any case.

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include "cpu/roi_align.h"

namespace maskrcnn_plus {
namespace {

at::Tensor roi_align_autocast(
    at::TensorList features,
    const at::Tensor& rois,
    const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scales,
    int64_t pooled_height,
    int64_t pooled_width,
    int64_t sampling_ratio,
    bool aligned,
    bool channels_last) {
  const c10::impl::ExcludeDispatchKeyGuard without_autocast(c10::DispatchKey::AutocastCPU);
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("maskrcnn_plus::roi_align", "")
                             .typed<decltype(roi_align)>();
  at::ScalarType type = features.empty() ? at::kFloat : features[0].scalar_type();
  for (const at::Tensor& feature : features) {
    type = c10::promoteTypes(type, feature.scalar_type());
  }
  std::vector<at::Tensor> maps;
  for (const at::Tensor& feature : features) {
    maps.push_back(feature.to(type));
  }
  return op.call(
      maps, rois.to(c10::promoteTypes(type, at::kFloat)), levels, spatial_scales, pooled_height, pooled_width,
      sampling_ratio, aligned, channels_last);
}

} // namespace
} // namespace maskrcnn_plus

TORCH_LIBRARY_IMPL(maskrcnn_plus, AutocastCPU, m) {
  m.impl("roi_align", maskrcnn_plus::roi_align_autocast);
}
