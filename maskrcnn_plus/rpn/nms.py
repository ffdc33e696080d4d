"""Non-maximum suppression of many groups of boxes in one operator call."""

from __future__ import annotations

import torch
from detectron2.layers import batched_nms as detectron2_batched_nms
from torch import Tensor

from maskrcnn_plus import extension


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression within each group (images, levels, classes).

    Equal to torchvision's `nms` on every group alone. Groups are worked on by all threads.

    Args:
        boxes: [N, 4] xyxy.
        scores: [N].
        groups: int64 [N]; boxes of different groups never suppress each other.
        iou_threshold: a box goes whose IoU with a better one of its group is above it.

    Returns:
        int64 [kept], indices of the boxes that stay, the best first.

    Raises:
        ValueError: the shapes or types do not fit.
    """
    if boxes.device.type != "cpu" or not extension.is_available():
        if boxes.device.type == "cpu":
            extension.warn_once("batched_nms")
        return detectron2_batched_nms(boxes, scores, groups, iou_threshold)
    boxes = boxes.float()  # half precision is too coarse for coordinates
    return torch.ops.maskrcnn_plus.batched_nms(boxes, scores.float(), groups, iou_threshold)


if extension.is_available():

    @torch.library.register_fake("maskrcnn_plus::batched_nms")
    def _(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
        return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)
