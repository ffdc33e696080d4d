// Schema and CPU kernels of the operators in torch.ops.maskrcnn_plus, one a file under cpu/. Kernels of other devices and the
// rules of autograd and autocast are in maskrcnn_plus/ops/, where extension.py repeats the schemas.
// Loading the library registers them; it needs neither pybind11 nor the headers of Python.

#include <torch/library.h>

#include "cpu/capability.h"
#include "cpu/nms.h"
#include "cpu/paste_rle.h"
#include "cpu/roi_align.h"
#include "cpu/winograd.h"

TORCH_LIBRARY(maskrcnn_plus, m) {
  m.def("cpu_capability() -> str", maskrcnn_plus::cpu_capability);
  m.def("parallel_threads() -> int", maskrcnn_plus::parallel_threads);

  // features: L maps [N, C, H_l, W_l]; rois: [K, 5] (batch index, x0, y0, x1, y1); levels: [K] map of each box, None for
  // the only one; spatial_scales: of the maps; sampling_ratio: samples a bin and axis, at most 4096, 0 = one a pixel;
  // channels_last: memory format of the result. Returns [K, C, pooled_height, pooled_width].
  m.def(
      "roi_align(Tensor[] features, Tensor rois, Tensor? levels, float[] spatial_scales, int pooled_height, "
      "int pooled_width, int sampling_ratio, bool aligned, bool channels_last) -> Tensor");
  // sizes: N, C, H, W of each map, one after the other. Returns the gradient of each map.
  m.def(
      "roi_align_backward(Tensor grad, Tensor rois, Tensor? levels, float[] spatial_scales, SymInt[] sizes, "
      "int sampling_ratio, bool aligned, bool channels_last) -> Tensor[]");
  // boxes: [N, 4] xyxy; scores: [N]; groups: int64 [N], boxes of different groups never suppress each other. Returns the
  // indices of the boxes that are kept, the best first.
  m.def("batched_nms(Tensor boxes, Tensor scores, Tensor groups, float iou_threshold) -> Tensor");

  // mask_probs: [N, Hm, Wm]; boxes: [N, 4] xyxy, finite; height, width: of the image; rule: "detectron2" or
  // "torchvision". Returns the compressed counts of N COCO run-length encodings, one after the other, and the N + 1
  // offsets between them.
  m.def(
      "paste_masks_rle(Tensor mask_probs, Tensor boxes, int height, int width, float threshold, str rule) -> "
      "(Tensor bytes, Tensor offsets)");

  // input: float32 [N, C, H, W]; weight: [36, panels, C, 32], transformed 3 x 3 kernels; bias: [K]; relu: whether it
  // follows. C and K are multiples of 16. Returns the convolution [N, K, H, W] with padding 1, in channels_last memory.
  m.def("winograd_conv3x3(Tensor input, Tensor weight, Tensor bias, bool relu) -> Tensor");
  // input: float32 [N, C, H, W]; grad: [N, K, H, W], of the output. Returns the gradient of the kernels [K, C, 3, 3].
  m.def("winograd_conv3x3_backward_weight(Tensor input, Tensor grad) -> Tensor");
}

TORCH_LIBRARY_IMPL(maskrcnn_plus, CPU, m) {
  m.impl("batched_nms", maskrcnn_plus::batched_nms);
  m.impl("paste_masks_rle", maskrcnn_plus::paste_masks_rle);
  m.impl("roi_align", maskrcnn_plus::roi_align);
  m.impl("roi_align_backward", maskrcnn_plus::roi_align_backward);
  m.impl("winograd_conv3x3", maskrcnn_plus::winograd_conv3x3);
  m.impl("winograd_conv3x3_backward_weight", maskrcnn_plus::winograd_conv3x3_backward_weight);
}
