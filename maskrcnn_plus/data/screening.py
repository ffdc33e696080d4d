"""Which annotations need a look: those of many images at once, in NumPy, as a file may hold a million of them.

An annotation is passed only if `normalize_annotation` would leave it as it is; whatever is unusual is left to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from maskrcnn_plus.data.annotations import BOX_MODES, boxes_agree
from maskrcnn_plus.masks.measure import rle_boxes
from maskrcnn_plus.masks.polygons import MAX_OUTLINE
from maskrcnn_plus.rle import canonical_rles

_CHUNK = 4000  # annotations at once

Entry = tuple[dict[str, Any], tuple[int, int], bool]
"""An annotation, the (height, width) of its image, and whether its mask is in a label image."""


def screen(entries: Sequence[Entry]) -> tuple[np.ndarray, np.ndarray]:
    """Look at the boxes and masks of N annotations.

    Returns:
        bool [N], whether mask and box are in order as they stand; float64 [N, 4], xyxy of the mask as annotated,
        reaching beyond the image where it does, NaN where that is not known. Of an annotation with `label_id`, whose
        mask is in the label image, its box.
    """
    parts = [_screen_chunk(entries[first : first + _CHUNK]) for first in range(0, len(entries), _CHUNK)]
    parts.append((np.zeros(0, dtype=bool), np.zeros((0, 4))))
    passed, extents = map(np.concatenate, zip(*parts, strict=True))
    return passed, extents


def _screen_chunk(entries: Sequence[Entry]) -> tuple[np.ndarray, np.ndarray]:
    annotations = [annotation for annotation, _, _ in entries]
    limits = np.array([[size[1], size[0]] for _, size, _ in entries], dtype=np.float64)  # [N, 2] width, height
    boxes, sound = _read_boxes(annotations)  # [N, 4] xyxy
    with np.errstate(invalid="ignore"):
        sound &= np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        sound &= ((boxes[:, 2:] > 0) & (boxes[:, :2] < limits)).all(axis=1)
    extents = np.full((len(entries), 4), np.nan)
    fits = np.zeros(len(entries), dtype=bool)
    labels = np.array([labelled for _, _, labelled in entries])
    fits[labels], extents[labels] = True, boxes[labels]
    for find, look in ((_polygon_lists, _screen_polygons), (_rle_dicts, _screen_rles)):
        index = np.flatnonzero(~labels & np.array([find(annotation) for annotation in annotations], dtype=bool))
        if len(index):
            fits[index], extents[index] = look([annotations[k] for k in index], limits[index])
    with np.errstate(invalid="ignore"):
        tiled = np.tile(limits, 2)
        inside = np.clip(extents, 0, tiled)
        fits &= labels | ((inside[:, 2:] > inside[:, :2]).all(axis=1) & boxes_agree(np.clip(boxes, 0, tiled), inside))
    return sound & fits, extents


def _read_boxes(annotations: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, 4] xyxy, and which of them are four numbers in a known mode."""
    read, modes = np.zeros(len(annotations), dtype=bool), np.zeros(len(annotations), dtype=bool)
    values: list[Any] = []
    for k, annotation in enumerate(annotations):
        box, mode = annotation.get("bbox"), annotation.get("bbox_mode")
        if isinstance(box, list | tuple | np.ndarray) and len(box) == 4 and mode in BOX_MODES:
            read[k], modes[k] = True, mode == BoxMode.XYWH_ABS
            values.append(box)
    boxes = np.full((len(annotations), 4), np.nan)
    array = _as_floats(list(chain.from_iterable(values)))
    if array is None:
        return boxes, np.zeros_like(read)
    boxes[read] = array.reshape(-1, 4)
    boxes[modes, 2:] += boxes[modes, :2]
    return boxes, read


def _polygon_lists(annotation: dict[str, Any]) -> bool:
    """Whether the mask looks like a list of polygons with enough numbers each."""
    polygons = annotation.get("segmentation")
    return (
        type(polygons) is list
        and len(polygons) > 0
        and all(type(polygon) is list and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons)
    )


def _rle_dicts(annotation: dict[str, Any]) -> bool:
    return isinstance(annotation.get("segmentation"), dict)


def _screen_polygons(annotations: Sequence[dict[str, Any]], limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether polygons are in order [n], and their extents [n, 4]; limits [n, 2] are the images' width and height."""
    unknown = np.zeros(len(annotations), dtype=bool), np.full((len(annotations), 4), np.nan)
    polygons = list(chain.from_iterable(annotation["segmentation"] for annotation in annotations))
    array = _as_floats(list(chain.from_iterable(polygons)))
    if array is None:
        return unknown
    points = array.reshape(-1, 2)  # of all polygons
    lengths = np.array([len(polygon) for polygon in polygons]) // 2
    starts = np.cumsum(lengths) - lengths
    number = np.array([len(annotation["segmentation"]) for annotation in annotations])
    first = np.cumsum(number) - number  # polygon of each annotation
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = (f.reduceat(points, starts[first]) for f in (np.minimum, np.maximum))  # [n, 2]
        side = limits.max(axis=1)[:, None]
        good = ((low >= -side) & (high <= 2 * side)).all(axis=1)  # False where NaN
        good &= (high.max(axis=1) > 1) | (low.min(axis=1) < 0)
        following = np.arange(1, len(points) + 1)
        following[starts + lengths - 1] = starts
        steps = points[following] - points
        good &= np.add.reduceat(np.abs(steps).max(axis=1), starts[first]) <= MAX_OUTLINE
        own = points - np.repeat(points[starts], lengths, axis=0)  # small numbers, whose products are exact enough
        products = own[:, 0] * steps[:, 1] - own[:, 1] * steps[:, 0]
        good &= np.maximum.reduceat(np.abs(np.add.reduceat(products, starts)), first) > 0
    return good, np.concatenate([low, high], axis=1)


def _screen_rles(annotations: Sequence[dict[str, Any]], limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `_screen_polygons`, for RLEs that are written as ours are."""
    good, extents = np.zeros(len(annotations), dtype=bool), np.full((len(annotations), 4), np.nan)
    index = [
        k
        for k, annotation in enumerate(annotations)
        if annotation["segmentation"].get("size") == [int(limits[k, 1]), int(limits[k, 0])]
        and isinstance(annotation["segmentation"].get("counts"), str)
    ]
    rles = [annotations[k]["segmentation"] for k in index]
    try:
        canonical = canonical_rles(rles)
    except ValueError:  # which of them is found one by one
        return good, extents
    good[index] = [rle["counts"] == own["counts"] for rle, own in zip(canonical, rles, strict=True)]
    extents[index] = rle_boxes(canonical)
    return good, extents


def _as_floats(values: list[Any]) -> np.ndarray | None:
    """Numbers as float64 [N], or None where something else than numbers is among them."""
    try:
        array = np.array(values)
    except ValueError:  # lists of different lengths
        return None
    return array.astype(np.float64) if array.ndim == 1 and (array.size == 0 or array.dtype.kind in "fiu") else None
