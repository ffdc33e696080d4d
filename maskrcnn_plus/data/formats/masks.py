"""Annotations of masks: pixels, RLEs, polygons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from maskrcnn_plus.data.images import read_label_map
from maskrcnn_plus.masks.label_map import label_map_to_rles, masks_to_rles
from maskrcnn_plus.masks.measure import rle_boxes
from maskrcnn_plus.masks.polygons import polygons_to_rle


def mask_annotation(mask: np.ndarray, category: int) -> dict[str, Any]:
    """An object of a mask.

    Args:
        mask: bool [H, W], not empty.
        category: index of its class.
    """
    return rle_annotation(masks_to_rles(mask[None])[0], category)


def rle_annotation(rle: dict[str, Any], category: int, crowd: int = 0) -> dict[str, Any]:
    """An object of an RLE of its image.

    Args:
        rle: not empty.
        category: index of its class.
        crowd: 1 for a region of many objects.

    Raises:
        ValueError: it is empty.
    """
    box = rle_boxes([rle])[0]
    if not box.any():
        raise ValueError("its mask is empty. Redraw or remove it.")
    return {
        "segmentation": rle,
        "bbox": box.tolist(),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": category,
        "iscrowd": crowd,
    }


def polygon_annotation(polygons: Sequence[Sequence[float]], category: int, crowd: int = 0) -> dict[str, Any]:
    """An object of one or more parts.

    Args:
        polygons: [x0, y0, x1, y1, ...] of each part, in pixels.
        category: index of its class.
        crowd: 1 for a region of many objects.
    """
    points = np.concatenate([np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons])
    box = [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]
    return {
        "segmentation": [[float(value) for value in polygon] for polygon in polygons],
        "bbox": box,
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": category,
        "iscrowd": crowd,
    }


def record_rles(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Masks of the annotations of a dataset dict, from polygons, RLEs or its label image.

    Raises:
        ImageReadError: the label image cannot be read.
    """
    annotations = record["annotations"]
    if annotations and "label_file_name" in record:
        label_map = read_label_map(record["label_file_name"])  # [H, W]
        return label_map_to_rles(label_map, [each["label_id"] for each in annotations])
    masks = (each["segmentation"] for each in annotations)
    size = record["height"], record["width"]
    return [mask if isinstance(mask, dict) else polygons_to_rle(mask, *size) for mask in masks]
