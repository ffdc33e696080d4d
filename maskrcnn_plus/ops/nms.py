"""Non-maximum suppression of many groups of boxes in one call.

On CPUs runs the compiled kernel (`csrc/cpu/nms.cpp`), on GPUs the Triton kernel, anywhere else torchvision's, group by
group.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from maskrcnn_plus.ops import extension


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression within each group (images, levels, classes).

    Equal to torchvision's `nms` on every group alone, whatever the coordinates and the number of groups: groups are not
    moved apart, which would round the coordinates.

    Args:
        boxes: [N, 4] xyxy; half precision is widened.
        scores: [N].
        groups: int64 [N]; boxes of different groups never suppress each other.
        iou_threshold: a box goes whose IoU with a better one of its group is above it.

    Returns:
        int64 [kept], indices of the boxes that stay, the best first.

    Raises:
        ValueError: the shapes or types do not fit.
    """
    # Half precision is too coarse for coordinates.
    kind = torch.promote_types(boxes.dtype, torch.float32)
    return torch.ops.maskrcnn_plus.batched_nms(boxes.to(kind), scores.to(kind), groups, iou_threshold)


def nms_group_by_group(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """`maskrcnn_plus::batched_nms` on devices without a kernel of ours."""
    if boxes.device.type == "cpu":
        extension.warn_once("batched_nms")
    _check(boxes, scores, groups)
    order = groups.argsort(stable=True)
    counts = groups[order].unique_consecutive(return_counts=True)[1].tolist()
    kept = [
        members[torchvision.ops.nms(boxes[members], scores[members], iou_threshold)] for members in order.split(counts)
    ]
    keep = torch.cat([groups[:0], *kept]).sort().values
    return keep[scores[keep].argsort(descending=True, stable=True)]


def _nms_cuda(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    if not extension.has_triton(boxes.device):
        return nms_group_by_group(boxes, scores, groups, iou_threshold)
    from maskrcnn_plus.ops.nms_triton import batched_nms_triton

    _check(boxes, scores, groups)
    return batched_nms_triton(boxes, scores, groups, iou_threshold)


def _check(boxes: Tensor, scores: Tensor, groups: Tensor) -> None:
    """Raise what the compiled operator raises."""
    count = scores.shape[:1]
    if boxes.shape != (*count, 4) or scores.dim() != 1 or groups.shape != count or groups.dtype != torch.int64:
        raise ValueError(
            "batched_nms: boxes must be [N, 4], scores [N] of the same type and groups int64 [N], got "
            f"{list(boxes.shape)}, {list(scores.shape)} and {list(groups.shape)}."
        )


@torch.library.register_fake("maskrcnn_plus::batched_nms")
def _(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


extension.LIBRARY.impl("batched_nms", nms_group_by_group, "CompositeExplicitAutograd")
extension.LIBRARY.impl("batched_nms", _nms_cuda, "CUDA")
