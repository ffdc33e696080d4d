"""Annotations of masks that are written as pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from maskrcnn_plus.masks.label_map import masks_to_rles
from maskrcnn_plus.masks.measure import rle_boxes


def mask_annotation(mask: np.ndarray, category: int) -> dict[str, Any]:
    """An object of a mask.

    Args:
        mask: bool [H, W], not empty.
        category: index of its class.
    """
    rle = masks_to_rles(mask[None])[0]
    return {
        "segmentation": rle,
        "bbox": rle_boxes([rle])[0].tolist(),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": category,
        "iscrowd": 0,
    }
