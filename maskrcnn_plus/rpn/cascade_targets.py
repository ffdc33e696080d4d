"""What Cascade RPN learns: the object of each place, and the loss of a box.

Source: Vu et al., "Cascade RPN" (2019), Sec. 3.3, with the rounding of its reference implementation.

Shape shorthand: L levels, map of H_l x W_l places, P_l = H_l * W_l, R = sum of P_l; M objects of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["BACKGROUND", "IGNORED", "box_iou_loss", "paint_regions"]

BACKGROUND, IGNORED = -1, -2  # places without an object


def paint_regions(
    boxes: np.ndarray,
    first: np.ndarray,
    map_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    center_ratio: float,
    ignore_ratio: float,
) -> np.ndarray:
    """Which object each place of the pyramid learns: the one in whose middle it lies.

    An object belongs to the level whose anchors come next to its size. There its middle learns and the rest of its
    `ignore_ratio` is ignored; at the levels beside, all of its `ignore_ratio` is. Where objects cross at their own
    level, the smaller one counts (the reference takes the one that is listed later).

    Args:
        boxes: [M, 4] xyxy in pixels.
        first: [L, 4] xyxy in pixels, the anchor of the first place of each level.
        map_sizes: (H_l, W_l) of each level.
        strides: of the L maps in pixels.
        center_ratio, ignore_ratio: parts of a box's width and height.

    Returns:
        int64 [R]: index of the object, BACKGROUND or IGNORED.
    """
    first, boxes = first.astype(np.float64), boxes.astype(np.float64)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).clip(min=1e-6)
    sizes = np.log2((first[:, 2:] - first[:, :2]).prod(axis=1))  # [L]
    levels = np.abs(np.log2(area)[:, None] - sizes).argmin(axis=1)  # [M]

    own = [np.full(size, BACKGROUND) for size in map_sizes]
    beside = [np.zeros(size, dtype=bool) for size in map_sizes]
    regions = []  # of each level: slices of the middle and of the ignored part of each object
    for (height, width), stride, anchor in zip(map_sizes, strides, first, strict=True):
        on_map = (boxes - np.tile((anchor[:2] + anchor[2:]) / 2, 2)) / stride  # in places
        regions.append([_slices(on_map, ratio, height, width) for ratio in (center_ratio, ignore_ratio)])
    for index in np.argsort(-area, kind="stable"):
        level = levels[index]
        center, ignored = regions[level]
        own[level][ignored[index]] = IGNORED
        own[level][center[index]] = index
        for near in (level - 1, level + 1):
            if 0 <= near < len(own):
                beside[near][regions[near][1][index]] = True
    for own_l, beside_l in zip(own, beside, strict=True):
        own_l[beside_l] = IGNORED
    return np.concatenate([own_l.ravel() for own_l in own])


def _slices(boxes: np.ndarray, ratio: float, height: int, width: int) -> list[tuple[slice, slice]]:
    """Rows and columns of the middle `ratio` of each box, at least one place of the map."""
    near = np.rint((1 + ratio) / 2 * boxes[:, :2] + (1 - ratio) / 2 * boxes[:, 2:])
    far = np.rint((1 - ratio) / 2 * boxes[:, :2] + (1 + ratio) / 2 * boxes[:, 2:])
    last = (width - 1, height - 1)
    ends = np.concatenate([near.clip(0, last), far.clip(0, last) + 1], axis=1).astype(int)
    return [(slice(y1, y2), slice(x1, x2)) for x1, y1, x2, y2 in ends.tolist()]


def box_iou_loss(boxes: Tensor, targets: Tensor, kind: str = "iou") -> Tensor:
    """1 - IoU, or 1 - generalised IoU (Rezatofighi et al., 2019), of pairs of boxes.

    Args:
        boxes, targets: [K, 4] xyxy.
        kind: "iou" or "giou".

    Returns:
        [K]; boxes without area have an IoU of 0.
    """
    tiny = torch.finfo(boxes.dtype).tiny
    width, height = _sides(torch.maximum(boxes[:, :2], targets[:, :2]), torch.minimum(boxes[:, 2:], targets[:, 2:]))
    overlap = width.clamp(min=0) * height.clamp(min=0)
    areas = [width * height for width, height in (_sides(each[:, :2], each[:, 2:]) for each in (boxes, targets))]
    union = areas[0] + areas[1] - overlap
    loss = 1 - overlap / union.clamp(min=tiny)
    if kind == "giou":
        width, height = _sides(torch.minimum(boxes[:, :2], targets[:, :2]), torch.maximum(boxes[:, 2:], targets[:, 2:]))
        hull = width * height
        loss = loss + (hull - union) / hull.clamp(min=tiny)
    return loss


def _sides(corner: Tensor, opposite: Tensor) -> tuple[Tensor, Tensor]:
    return (opposite - corner).unbind(1)
