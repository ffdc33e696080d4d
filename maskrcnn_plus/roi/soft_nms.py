"""Soft-NMS (Bodla et al., "Soft-NMS: Improving Object Detection With One Line of Code", 2017, Fig. 2, Eq. 2 and 3).

A better box lowers the scores of those that it overlaps, instead of removing them: objects that hide one another stay.

Shorthand: N boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor

SOFT_NMS_METHODS = ("linear", "gaussian")


@torch.no_grad()
def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None = None,
    *,
    method: str = "gaussian",
    iou_threshold: float = 0.5,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    max_kept: int = -1,
) -> tuple[Tensor, Tensor]:
    """Choose the best box, lower the scores of the rest of its group by their overlap with it, and again.

    Takes one step a kept box. Groups (classes) share the steps without touching each other.

    Args:
        boxes: [N, 4] xyxy.
        scores: [N], finite.
        groups: int64 [N]; boxes of different groups never touch each other's scores. None puts all in one.
        method: "linear" multiplies a score by 1 - IoU where the IoU is at least `iou_threshold` (Eq. 2); "gaussian" by
            exp(-IoU^2 / sigma) at any IoU (Eq. 3).
        iou_threshold: of "linear".
        sigma: of "gaussian". Near 0 any overlap removes a box, as NMS at a threshold of 0 does.
        score_threshold: boxes whose lowered score is not above it go; at least 0.
        max_kept: stop after so many boxes, the best of all groups; -1 goes on to the last.

    Returns:
        int64 [kept], indices of the boxes that stay, the best lowered score first, and these scores [kept].

    Raises:
        ValueError: shapes do not fit, a score is not finite, or an argument is out of range.
    """
    _check(boxes, scores, groups, method, sigma, score_threshold)
    # Half precision is too coarse for coordinates.
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32), copy=True)
    low, high = boxes[:, :2], boxes[:, 2:]
    areas = (high - low).prod(dim=1)
    indices, values = [], []
    while len(indices) != max_kept and len(indices) < len(boxes):
        value, index = scores.max(dim=0)
        if value <= score_threshold:
            break
        indices.append(index)
        values.append(value)
        sides = (torch.minimum(high, high[index]) - torch.maximum(low, low[index])).clamp_(min=0)  # [N, 2]
        inter = sides[:, 0] * sides[:, 1]
        # Two boxes without area have 0 / 0: they do not overlap.
        ious = (inter / (areas + areas[index] - inter)).nan_to_num_(nan=0.0)  # [N]
        if method == "linear":
            factors = torch.where(ious >= iou_threshold, 1 - ious, 1.0)
        else:
            factors = ious.square_().div_(-sigma).exp_()
        if groups is not None:
            factors.masked_fill_(groups != groups[index], 1.0)
        scores *= factors
        scores[index] = -1  # chosen: below every threshold from now on
    if not indices:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device), scores[:0]
    return torch.stack(indices), torch.stack(values)


def _check(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, method: str, sigma: float, score_threshold: float
) -> None:
    shape = boxes.shape[:1]
    if boxes.shape != (*shape, 4) or scores.shape != shape or (groups is not None and groups.shape != shape):
        raise ValueError(
            "soft_nms takes boxes [N, 4], scores [N] and groups [N], got "
            f"{tuple(boxes.shape)}, {tuple(scores.shape)} and {groups if groups is None else tuple(groups.shape)}."
        )
    if method not in SOFT_NMS_METHODS:
        raise ValueError(f"The method of Soft-NMS is one of {', '.join(SOFT_NMS_METHODS)}, got {method!r}.")
    if sigma <= 0 or score_threshold < 0:
        raise ValueError(
            f"Soft-NMS needs sigma > 0 and a score_threshold of at least 0, got {sigma} and {score_threshold}."
        )
    if not (boxes.isfinite().all() and scores.isfinite().all()):
        raise ValueError("soft_nms: boxes and scores must be finite.")
