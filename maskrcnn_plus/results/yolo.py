"""YOLO's segmentation labels: a line an object, class x0 y0 x1 y1 ..., as parts of the image's width and height.

An object is one polygon: of a mask in several parts the largest is written, and holes are filled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import yaml

from maskrcnn_plus.results.outlines import Polygon, rle_polygons


def yolo_lines(
    rles: Sequence[dict[str, Any]], categories: Iterable[int], height: int, width: int
) -> tuple[list[str], int]:
    """Lines of the objects of an image, along the edges of their pixels.

    Args:
        rles: N masks of H x W pixels; empty ones have no line.
        categories: N indices of classes.
        height, width: H, W.

    Returns:
        The lines, and how many masks have holes or several parts, which the lines do not.
    """
    lines, changed = [], 0
    for category, polygons in zip(categories, rle_polygons(rles), strict=True):
        if polygons:
            lines.append(yolo_line(category, max(polygons, key=_outer_area)[0], height, width))
            changed += len(polygons) > 1 or len(polygons[0]) > 1
    return lines, changed


def yolo_line(category: int, ring: np.ndarray, height: int, width: int) -> str:
    """Line of an object whose outline is a ring [K, 2] of corners (x, y), pixels."""
    parts = np.asarray(ring, dtype=np.float64) / [width, height]
    return " ".join([str(category), *(f"{value:.8g}" for value in parts.reshape(-1).tolist())])


def data_yaml(splits: dict[str, str], class_names: Sequence[str]) -> bytes:
    """The file that names the classes, and the folder of images of each split.

    Args:
        splits: folder by split ("train", "val", "test"), relative to the file.
        class_names: name of each class.
    """
    content = {**splits, "names": dict(enumerate(class_names))}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()


def _outer_area(polygon: Polygon) -> float:
    x, y = polygon[0].T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())
