"""Detections that better ones cover: a box around two touching objects beside the boxes of both passes any box NMS that
leaves neighbours alone, but of its mask the two leave nothing.

Shape shorthand: N detections of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskrcnn_plus.masks.measure import rle_overlaps


def suppress_covered(
    rles: Sequence[dict[str, Any]], scores: np.ndarray, classes: np.ndarray, max_covered: float
) -> np.ndarray:
    """Choose the detections whose masks better ones leave free, class by class.

    The best first, a detection is dropped where kept ones cover more than `max_covered` of its mask, the shares of
    several added up. Source: Kirillov et al., "Panoptic Segmentation" (2019), Sec. 7.

    Args:
        rles: N masks as RLEs of one size.
        scores: [N].
        classes: [N] ints.
        max_covered: share of a mask, in 0..1.

    Returns:
        Ascending indices of those that stay, int64. An empty mask is covered by nothing.
    """
    keep = np.ones(len(rles), dtype=bool)
    for each in np.unique(classes):
        members = np.flatnonzero(classes == each)
        members = members[np.argsort(-scores[members], kind="stable")]
        masks = [rles[k] for k in members]
        shares = np.nan_to_num(rle_overlaps(masks, masks, of_first=True))  # [n, n]: of the first in the second
        for k in range(1, len(members)):
            keep[members[k]] = shares[k, :k] @ keep[members[:k]] <= max_covered
    return np.flatnonzero(keep)
