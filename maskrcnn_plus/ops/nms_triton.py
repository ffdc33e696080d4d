"""Non-maximum suppression of many groups of boxes on a GPU: all groups in one launch.

Torchvision's kernel compares all boxes with each other. It takes one launch a group, or boxes moved apart by group,
which rounds their coordinates. Here a program has a group: it goes through the boxes in blocks, the best first, drops
those that overlap a box kept before, and settles each block in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 32  # boxes


@triton.jit
def _overlap(ax0, ay0, ax1, ay1, bx0, by0, bx1, by1, threshold):
    """Whether the IoU of boxes is above the threshold, in the order of operations of torchvision's kernel."""
    width = tl.maximum(tl.minimum(ax1, bx1) - tl.maximum(ax0, bx0), 0.0)
    height = tl.maximum(tl.minimum(ay1, by1) - tl.maximum(ay0, by0), 0.0)
    intersection = width * height
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - intersection
    if intersection.dtype == tl.float32:  # noqa: SIM108 - decided when the kernel is compiled
        iou = tl.div_rn(intersection, union)
    else:
        iou = intersection / union
    return iou > threshold


@triton.jit
def _suppress(boxes, groups, keep, threshold, count, BLOCK: tl.constexpr):
    """Sets keep[i] of the boxes of a group; the program of its first box does the work, all others end at once."""
    start = tl.program_id(0)
    group = tl.load(groups + start)
    first = start == 0
    if start > 0:
        first = tl.load(groups + start - 1) != group
    block = tl.where(first, start, count)
    lanes = tl.arange(0, BLOCK)
    while block < count:
        index = block + lanes
        mine = index < count
        mine &= tl.load(groups + index, mask=mine, other=-1) == group
        x0 = tl.load(boxes + index * 4, mask=mine, other=0.0)
        y0 = tl.load(boxes + index * 4 + 1, mask=mine, other=0.0)
        x1 = tl.load(boxes + index * 4 + 2, mask=mine, other=0.0)
        y1 = tl.load(boxes + index * 4 + 3, mask=mine, other=0.0)
        alive = mine.to(tl.int32)
        for earlier in range(start, block, BLOCK):
            other = earlier + lanes
            kept = tl.load(keep + other) != 0
            over = _overlap(
                x0[:, None], y0[:, None], x1[:, None], y1[:, None],
                tl.load(boxes + other * 4)[None, :], tl.load(boxes + other * 4 + 1)[None, :],
                tl.load(boxes + other * 4 + 2)[None, :], tl.load(boxes + other * 4 + 3)[None, :],
                threshold,
            )  # fmt: skip
            alive = tl.where(tl.sum((over & kept[None, :]).to(tl.int32), 1) > 0, 0, alive)
        for lane in range(BLOCK):
            if tl.sum(tl.where(lanes == lane, alive, 0), 0) > 0:
                best = boxes + (block + lane) * 4
                over = _overlap(
                    tl.load(best), tl.load(best + 1), tl.load(best + 2), tl.load(best + 3), x0, y0, x1, y1, threshold
                )
                alive = tl.where(over & (lanes > lane), 0, alive)
        tl.store(keep + index, alive.to(tl.int8), mask=mine)
        tl.debug_barrier()  # the next block reads what other threads of this program have stored
        block += BLOCK
        following = tl.load(groups + block, mask=block < count, other=-1)
        block = tl.where(following == group, block, count)


def batched_nms_triton(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """See `batched_nms`; one synchronisation, for the number of boxes that stay."""
    by_score = scores.argsort(descending=True, stable=True)
    order = by_score[groups[by_score].argsort(stable=True)]  # groups in turn, of each the best box first
    keep = torch.zeros(len(order), dtype=torch.int8, device=boxes.device)
    if len(order):
        with torch.cuda.device_of(boxes):
            _suppress[(len(order),)](
                boxes[order].contiguous(), groups[order].contiguous(), keep, iou_threshold, len(order), BLOCK=_BLOCK
            )
    kept = order[keep.bool()].sort().values
    return kept[scores[kept].argsort(descending=True, stable=True)]
