"""One annotation of a data set, brought into the one form that the rest of the package works with.

Files of annotation tools hold polygons as points, numbers as text, RLEs in lists, boxes that are missing. What a person
can understand is understood and noted; what nobody can is an error. Nothing reaches pycocotools, or code of Detectron2
that calls it, that has not been here.

Shape shorthand: P points of a polygon in an image of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from maskrcnn_plus.masks.label_map import masks_to_rles
from maskrcnn_plus.masks.measure import rle_boxes
from maskrcnn_plus.masks.polygons import check_polygons, short_text
from maskrcnn_plus.rle import canonical_rles

POINTS = "polygons as points [[x, y], ...]: taken as [x, y, x, y, ...]"
FLAT = "a polygon that is not in a list of polygons: taken for the only one"
TEXT = "numbers as text: taken as numbers"
RLE_IN_LIST = "an RLE in a list: taken for the mask"
RLE_AS_BYTES = "an RLE whose counts are Python's text of bytes, b'...': taken for what it shows"
BIT_MASK = "masks as arrays: encoded"
NO_BOX = "no bbox: taken from the mask"
OTHER_BOX = "a bbox that does not fit its mask: the mask counts, and the bbox was taken from it"

NORMALIZED = (
    "all coordinates of its mask lie between 0 and 1: they are parts of the image's size. Multiply x by the width and "
    "y by the height."
)
"""What is wrong with a mask whose unit is the image."""

BOX_MODES = (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)

MIN_BOX_IOU = 0.7
"""Boxes of an annotation and of its mask that agree less are two different ones."""

_SLACK = 2.0  # pixels by which the sides of such boxes may always differ, however small the object


def normalize_annotation(annotation: dict[str, Any], size: tuple[int, int]) -> tuple[dict[str, Any], list[str]]:
    """Understand the mask and the box of an annotation.

    Args:
        annotation: of a Detectron2 dataset dict, with `segmentation`; it is not changed.
        size: (H, W) of the image.

    Returns:
        The keys `segmentation`, `bbox` and `bbox_mode` as far as they have to change, and what had to be understood:
        POINTS, FLAT, ...

    Raises:
        ValueError: the mask or the box cannot be used; the message says why, without the name of the file.
    """
    original, mode = annotation.get("segmentation"), annotation.get("bbox_mode")
    segmentation, notes = normalize_segmentation(original, size)
    rewritten = notes or (isinstance(segmentation, dict) and segmentation["counts"] != original["counts"])
    changes: dict[str, Any] = {"segmentation": segmentation} if rewritten else {}
    if not isinstance(segmentation, dict):
        _check_extent(segmentation, size)
    inside = mask_box(segmentation, size)
    box, converted = read_box(annotation)
    if converted:
        notes.append(TEXT)
        changes["bbox"] = box.tolist()
    if box is None:
        notes.append(NO_BOX)
    elif not boxes_agree(box_corners(box, mode, size).clip(0, [size[1], size[0]] * 2), inside):
        box = None
        notes.append(OTHER_BOX)
    if box is None:
        mode = BoxMode(mode) if mode in BOX_MODES else BoxMode.XYWH_ABS
        changes["bbox"] = BoxMode.convert(inside.tolist(), BoxMode.XYXY_ABS, mode)
        changes["bbox_mode"] = mode
    return changes, list(dict.fromkeys(notes))


def normalize_segmentation(
    segmentation: Any, size: tuple[int, int]
) -> tuple[list[list[float]] | dict[str, Any], list[str]]:
    """Understand the mask of an annotation.

    Args:
        segmentation: polygons [[x0, y0, x1, y1, ...], ...], also as points [[x, y], ...], in an outer list or without
            it; an RLE; or an array [H, W] of which non-zero is foreground. Numbers may be text.
        size: (H, W) of the image.

    Returns:
        Polygons as lists of numbers, or a compressed RLE whose counts are str; and what had to be understood.

    Raises:
        ValueError: it cannot be used; the message says why.
    """
    notes: list[str] = []
    if isinstance(segmentation, Sequence) and len(segmentation) == 1 and isinstance(segmentation[0], dict):
        segmentation = segmentation[0]
        notes.append(RLE_IN_LIST)
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if isinstance(counts, str) and counts[:2] in ("b'", 'b"'):  # no count has a quotation mark
            segmentation = {**segmentation, "counts": counts[2:-1].replace(r"\\", "\\")}
            notes.append(RLE_AS_BYTES)
        return _normalize_rle(segmentation, size), notes
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
        if segmentation.shape != tuple(size) or segmentation.dtype.kind not in "bui":
            raise ValueError(
                f"the bit mask is {segmentation.shape} of {segmentation.dtype}, the image is {tuple(size)}: it must "
                "hold bool or integers for each of its pixels."
            )
        return masks_to_rles(segmentation[None])[0], [BIT_MASK]
    if isinstance(segmentation, str) or not isinstance(segmentation, Sequence | np.ndarray) or len(segmentation) == 0:
        raise ValueError("it has no mask (neither label_id nor a segmentation of polygons or RLE).")
    polygons = [_normalize_polygon(index, polygon, notes) for index, polygon in enumerate(_outer(segmentation, notes))]
    check_polygons(polygons, *size)
    return polygons, list(dict.fromkeys(notes))


def has_mask(annotation: dict[str, Any]) -> bool:
    """Whether an annotation has a `segmentation` that is not empty, sound or not."""
    segmentation = annotation.get("segmentation")
    return segmentation is not None and not (hasattr(segmentation, "__len__") and len(segmentation) == 0)


def read_box(annotation: dict[str, Any]) -> tuple[np.ndarray | None, bool]:
    """The numbers of `bbox`, float64, or None where it is missing or empty, and whether some were text.

    Raises:
        ValueError: something else than numbers is among them.
    """
    box = annotation.get("bbox")
    if box is None or (isinstance(box, Sequence | np.ndarray) and len(box) == 0):
        return None, False
    try:
        return _numbers(box)
    except ValueError as error:
        mode = annotation.get("bbox_mode")
        raise ValueError(
            f"bbox {short_text(box)} with bbox_mode {mode}: 4 numbers as XYXY_ABS or XYWH_ABS are needed."
        ) from error


def mask_box(segmentation: list[list[float]] | dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Tight box of a normal mask, float64 xyxy [4], of polygons as far as they lie within the image.

    Raises:
        ValueError: nothing of the mask is in the image.
    """
    if isinstance(segmentation, dict):
        box = rle_boxes([segmentation])[0]
        problem = "its mask is empty."
    else:
        points = np.concatenate([np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation])
        low, high = points.min(axis=0), points.max(axis=0)
        limits = np.array([size[1], size[0]], dtype=np.float64)
        box = np.concatenate([low.clip(0, limits), high.clip(0, limits)])
        problem = (
            f"its mask (x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}) is outside of the image "
            f"({size[0]} high x {size[1]} wide)."
        )
    if not (box[2:] > box[:2]).all():
        raise ValueError(problem)
    return box


def box_corners(box: np.ndarray | None, mode: Any, size: tuple[int, int]) -> np.ndarray:
    """Box of an annotation, float64 xyxy [4].

    Raises:
        ValueError: it is no box, empty, not finite or outside of the image of `size` (H, W).
    """
    if box is None or len(box) != 4 or mode not in BOX_MODES:
        box = None if box is None else box.tolist()
        raise ValueError(f"bbox {box} with bbox_mode {mode}: 4 numbers as XYXY_ABS or XYWH_ABS are needed.")
    shown = f"bbox {box.tolist()} ({BoxMode(mode).name})"
    x0, y0, x1, y1 = BoxMode.convert(box.tolist(), BoxMode(mode), BoxMode.XYXY_ABS)
    if not np.isfinite([x0, y0, x1, y1]).all():
        raise ValueError(f"{shown} is not finite.")
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"{shown} is empty: width {x1 - x0:g}, height {y1 - y0:g}.")
    if x1 <= 0 or y1 <= 0 or x0 >= size[1] or y0 >= size[0]:
        raise ValueError(f"{shown} is outside of the image ({size[0]} high x {size[1]} wide).")
    return np.array([x0, y0, x1, y1])


def boxes_agree(boxes: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Whether boxes [..., 4] are those of the masks with the boxes [..., 4], all xyxy, give or take what tools differ.

    Boxes may go on beyond the image where the box of a mask ends; both are finite and not empty.
    """
    close = np.abs(boxes - masks).max(axis=-1) <= _SLACK
    return close | (box_ious(boxes, masks) >= MIN_BOX_IOU)


def box_ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of pairs of boxes, xyxy [..., 4]; boxes turned inside out overlap with nothing."""
    shared = np.prod((np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(min=0), axis=-1)
    areas = [np.prod((box[..., 2:] - box[..., :2]).clip(min=0), axis=-1) for box in (a, b)]
    union = areas[0] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)


def _outer(segmentation: Any, notes: list[str]) -> Sequence[Any]:
    """The list of polygons, which some tools leave out around a single one."""
    if all(map(_is_number, segmentation)):
        notes.append(FLAT)
        return [segmentation]
    points = len(segmentation) >= 3 and all(
        isinstance(point, Sequence | np.ndarray) and len(point) == 2 and all(map(_is_number, point))
        for point in segmentation
    )
    if points:
        notes.append(POINTS)
        return [[value for point in segmentation for value in point]]
    return segmentation


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number | str)


def _normalize_polygon(index: int, polygon: Any, notes: list[str]) -> list[float]:
    """Numbers [x0, y0, x1, y1, ...] of one polygon."""
    if isinstance(polygon, str) or not isinstance(polygon, Sequence | np.ndarray):
        raise ValueError(
            f"polygon {index} is {short_text(polygon)}: each must be a list of numbers [x0, y0, x1, y1, ...]."
        )
    if len(polygon) and all(isinstance(point, Sequence | np.ndarray) and len(point) == 2 for point in polygon):
        if not any(isinstance(point, str) for point in polygon):
            notes.append(POINTS)
    elif not all(map(_is_number, polygon)):
        raise ValueError(f"polygon {index} is {short_text(polygon)}, no list of numbers [x0, y0, x1, y1, ...].")
    try:
        values, converted = _numbers(polygon)
    except ValueError as error:
        raise ValueError(f"polygon {index} is no list of numbers [x0, y0, x1, y1, ...]: {error}") from error
    if converted:
        notes.append(TEXT)
    return values.tolist()


def _normalize_rle(rle: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Check an RLE and write it in the one form."""
    stated = rle.get("size", ())
    try:
        fits = "counts" in rle and tuple(int(side) for side in stated) == tuple(size)
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        swapped = isinstance(stated, Sequence) and list(stated)[::-1] == list(size)
        hint = " Height and width are exchanged." if swapped else ""
        raise ValueError(f"the RLE has size {stated} and must have [height, width] = {list(size)}, and counts.{hint}")
    return canonical_rles([{"size": list(size), "counts": rle["counts"]}])[0]


def _numbers(values: Any) -> tuple[np.ndarray, bool]:
    """Numbers [N] as float64, and whether some were text; a ValueError where something else is among them."""
    try:
        numbers, floats = np.asarray(values), np.asarray(values, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{short_text(values)} does not hold numbers alone.") from error
    return floats, numbers.dtype.kind in "OUS"


def _check_extent(polygons: list[list[float]], size: tuple[int, int]) -> None:
    """Refuse polygons without area and those whose unit is not the pixel."""
    points = [np.asarray(polygon, dtype=np.float64) for polygon in polygons]
    if max(size) > 2 and all(((each >= 0) & (each <= 1)).all() for each in points):
        raise ValueError(NORMALIZED)
    if not any(polygon_area(each) for each in points):
        raise ValueError("its polygons have no area: all points lie on a line.")


def polygon_area(points: np.ndarray) -> float:
    """Area of a polygon [2 * P] in square pixels."""
    x, y = points[0::2] - points[0], points[1::2] - points[1]
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
