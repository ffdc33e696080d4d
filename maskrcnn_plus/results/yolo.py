"""YOLO's segmentation labels: a line an object, class x0 y0 x1 y1 ..., as parts of the image's width and height.

An object is one polygon: of a mask in several parts the largest is written, and holes are filled.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.results.outlines import double_area, rle_polygons
from maskrcnn_plus.results.overlay import class_label

if TYPE_CHECKING:
    from detectron2.structures import Instances

logger = logging.getLogger(__name__)


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
            largest = max((polygon[0] for polygon in polygons), key=double_area)
            lines.append(yolo_line(category, largest, height, width))
            changed += len(polygons) > 1 or len(polygons[0]) > 1
    return lines, changed


def yolo_line(category: int, ring: np.ndarray, height: int, width: int) -> str:
    """Line of an object whose outline is a ring [K, 2] of corners (x, y), pixels."""
    parts = np.asarray(ring, dtype=np.float64) / [width, height]
    return " ".join([str(category), *(f"{value:.8g}" for value in parts.reshape(-1).tolist())])


def yolo_label(instances: Instances, image_name: str, class_names: Sequence[str] | None = None) -> bytes:
    """The text file of one image.

    Args:
        instances: with `pred_classes` and `pred_masks_rle`; empty masks are left out.
        image_name: of the image, for a warning of objects that are not whole in it.
        class_names: without effect, as classes are numbers.
    """
    rles = instances.pred_masks_rle
    lines, changed = yolo_lines(rles, instances.pred_classes.tolist(), *instances.image_size)
    if changed:
        logger.warning(
            "%s: %d of %d objects have holes or several parts; YOLO's lines have the outline of the largest part.",
            *(image_name, changed, len(rles)),
        )
    return "".join(f"{line}\n" for line in lines).encode()


def merge_yolo(path: Path, parts: Sequence[Path], class_names: Sequence[str] | None) -> None:
    """Write the data.yaml of images that lie in images/ beside it.

    Args:
        path: the file to write.
        parts: a file of `yolo_label` an image.
        class_names: name of each class; None numbers those that occur.
    """
    if class_names is None:
        used = [int(line.split()[0]) for part in parts for line in part.read_text().splitlines()]
        class_names = [class_label(None, index) for index in range(max(used, default=-1) + 1)]
    write_atomically(path, data_yaml({"train": "images"}, class_names), durable=True)


def data_yaml(splits: dict[str, str], class_names: Sequence[str]) -> bytes:
    """The file that names the classes, and the folder of images of each split.

    Args:
        splits: folder by split ("train", "val", "test"), relative to the file.
        class_names: name of each class.
    """
    content = {**splits, "names": dict(enumerate(class_names))}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()
