"""Non-maximum suppression of many groups of boxes in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor

from maskrcnn_plus.ops import extension


def batched_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, num_groups: int | None = None
) -> Tensor:
    """Greedy non-maximum suppression within each group (images, levels, classes).

    Equal to torchvision's `nms` on every group alone, whatever the coordinates and the number of groups. On a CPU the
    groups are worked on by all threads. On other devices torchvision's kernel runs once a group: one run for all, with
    the groups moved apart, would round the coordinates, and compare each box with those of all groups.

    Args:
        boxes: [N, 4] xyxy; half precision is widened.
        scores: [N].
        groups: int64 [N]; boxes of different groups never suppress each other.
        iou_threshold: a box goes whose IoU with a better one of its group is above it.
        num_groups: groups are below it, where that is known; it lets a trace hold for other boxes.

    Returns:
        int64 [kept], indices of the boxes that stay, the best first.

    Raises:
        ValueError: the shapes or types do not fit.
    """
    # Half precision is too coarse for coordinates.
    kind = torch.promote_types(boxes.dtype, torch.float32)
    boxes, scores = boxes.to(kind), scores.to(kind)
    if boxes.device.type == "cpu" and extension.is_available():
        return torch.ops.maskrcnn_plus.batched_nms(boxes, scores, groups, iou_threshold)
    if boxes.device.type == "cpu":
        extension.warn_once("batched_nms")
    if not torch.jit.is_tracing():
        _check(boxes, scores, groups)
    kept = []
    for members in _members(groups, num_groups):
        kept.append(members[torchvision.ops.nms(boxes[members], scores[members], iou_threshold)])
    keep = torch.cat([groups[:0], *kept]).sort().values
    return keep[scores[keep].argsort(descending=True, stable=True)]


def _check(boxes: Tensor, scores: Tensor, groups: Tensor) -> None:
    """Raise what the compiled operator raises."""
    count = scores.shape[:1]
    if boxes.shape != (*count, 4) or scores.dim() != 1 or groups.shape != count or groups.dtype != torch.int64:
        raise ValueError(
            "batched_nms: boxes must be [N, 4], scores [N] of the same type and groups int64 [N], got "
            f"{list(boxes.shape)}, {list(scores.shape)} and {list(groups.shape)}."
        )


def _members(groups: Tensor, num_groups: int | None) -> Sequence[Tensor]:
    """Indices of the boxes of each group; the sizes of all take one synchronisation with a GPU, or two."""
    if num_groups is not None and torch.jit.is_tracing():
        return [(groups == group).nonzero()[:, 0] for group in range(num_groups)]
    order = groups.argsort(stable=True)
    if num_groups is None:
        counts = groups[order].unique_consecutive(return_counts=True)[1]
    else:
        counts = (groups[:, None] == torch.arange(num_groups, device=groups.device)).sum(dim=0)
    return order.split(counts.tolist())


if extension.is_available():

    @torch.library.register_fake("maskrcnn_plus::batched_nms")
    def _(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
        return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)
