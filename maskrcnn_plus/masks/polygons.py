"""Polygons to pixels by COCO's rule, and the one rule that says which polygons may be given to pycocotools.

pycocotools writes beyond its memory at coordinates from about 4e8 on, and takes memory in proportion to the length of
an outline, whatever the size of the image.

Shape shorthand: P points of a polygon in an image of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import torch
from detectron2.structures import BitMasks, PolygonMasks

from maskrcnn_plus.rle import MAX_PIXELS, canonical_rles, encode_runs, join_runs, ranges

MAX_OUTLINE = 10_000_000
"""Pixels that the outline of an object may be long: the circumference of an image of 2.5 million pixels a side."""


def check_polygons(polygons: Sequence[Any], height: int, width: int) -> list[np.ndarray]:
    """Accept or refuse the polygons of an object.

    Args:
        polygons: each [x0, y0, x1, y1, ...] or [P, 2] in pixels of the image. They may reach beyond it by as much as
            its longer side.
        height, width: H, W.

    Returns:
        float64 [2 * P] of each.

    Raises:
        ValueError: a polygon is malformed, not finite, far outside of the image or endless; the message has its index.
    """
    checked, outline, side = [], 0.0, max(height, width)
    for index, polygon in enumerate(polygons):
        try:
            points = np.asarray(polygon, dtype=np.float64).reshape(-1)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"polygon {index} is {short_text(polygon)}: each must be a list of numbers [x0, y0, x1, y1, ...]."
            ) from error
        if points.size < 6 or points.size % 2:
            raise ValueError(
                f"polygon {index} has {points.size} numbers: an even number of at least 6 is needed, x and y of at "
                "least 3 points."
            )
        if not np.isfinite(points).all():
            raise ValueError(f"polygon {index} has coordinates that are not finite.")
        if not ((points >= -side) & (points <= 2 * side)).all():
            raise ValueError(
                f"polygon {index} reaches from {points.min():g} to {points.max():g}, far outside of the image of "
                f"{height} high x {width} wide: coordinates must be in pixels of this image."
            )
        corners = points.reshape(-1, 2)
        outline += np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum()
        if outline > MAX_OUTLINE:
            raise ValueError(f"its outline is longer than {MAX_OUTLINE} pixels: the points are not those of an object.")
        checked.append(points)
    return checked


def polygons_to_rle(polygons: Sequence[Any], height: int, width: int) -> dict[str, Any]:
    """Encode the union of an object's polygons, the pixels that COCO's API gives.

    Args:
        polygons: as for `check_polygons`; none gives an empty mask.
        height, width: H, W.

    Returns:
        RLE of size [H, W], `counts` as str.

    Raises:
        ValueError: as `check_polygons`, or an image without pixels or with more than an RLE can count.
    """
    _check_size(height, width)
    points = [each.tolist() for each in check_polygons(polygons, height, width)]
    if not points:
        return canonical_rles([{"size": [height, width], "counts": [height * width]}])[0]
    union = coco_mask.merge(coco_mask.frPyObjects(points, height, width))
    return {"size": [height, width], "counts": union["counts"].decode("ascii")}


def rings_to_rle(rings: Sequence[Any], height: int, width: int) -> dict[str, Any]:
    """Encode the pixels whose centres lie inside closed rings by the even-odd rule, such as an outline and its holes.

    Unlike COCO's rule it gives back the mask of an outline along the edges of its pixels, holes included.

    Args:
        rings, height, width: as `polygons` of `polygons_to_rle`.

    Returns, Raises: as `polygons_to_rle`.
    """
    _check_size(height, width)
    corners = [ring.reshape(-1, 2) for ring in check_polygons(rings, height, width)]
    starts = np.concatenate([np.zeros((0, 2)), *corners])
    ends = np.concatenate([np.zeros((0, 2)), *(np.roll(ring, -1, axis=0) for ring in corners)])
    sides = np.sort([starts[:, 0], ends[:, 0]], axis=0)
    first, last = np.ceil(sides - 0.5).clip(0, width).astype(np.int64)  # columns whose centres an edge crosses
    columns, edge = ranges(first, last)
    steps = (ends - starts)[edge]
    y = starts[edge, 1] + (columns + 0.5 - starts[edge, 0]) * (steps[:, 1] / steps[:, 0])
    rows = np.ceil(y - 0.5).clip(0, height).astype(np.int64)
    places = np.sort(columns * height + rows)
    begin, end = places[::2], places[1::2]
    filled = begin < end
    owners = np.zeros(int(filled.sum()), dtype=np.int64)
    return encode_runs(join_runs(owners, begin[filled], end[filled], np.array([[height, width]])))[0]


def polygons_to_mask(polygons: Sequence[Any], height: int, width: int) -> np.ndarray:
    """Draw the union of an object's polygons, bool [H, W]; arguments and errors as of `polygons_to_rle`."""
    return coco_mask.decode(polygons_to_rle(polygons, height, width)).astype(bool)


def polygons_to_bitmasks(masks: PolygonMasks, height: int, width: int) -> BitMasks:
    """Draw N objects: `BitMasks.from_polygon_masks`, which does not look at what it is given.

    Raises:
        ValueError: as `polygons_to_rle`.
    """
    if len(masks) == 0:
        return BitMasks(torch.zeros(0, height, width, dtype=torch.bool))
    return BitMasks(torch.from_numpy(np.stack([polygons_to_mask(each, height, width) for each in masks.polygons])))


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"an image of {height} x {width} pixels must have 1 to {MAX_PIXELS}.")


def clip_polygon(polygon: np.ndarray, width: float, height: float) -> np.ndarray:
    """Cut a polygon to [0, width] x [0, height] (Sutherland and Hodgman 1974).

    A concave polygon that falls apart stays one polygon whose parts are joined along the border, which leaves its area
    unchanged.

    Args:
        polygon: [N, 2] points (x, y) in pixels.
        width, height: size of the image in pixels.

    Returns:
        float64 [K, 2]; K is 0 when nothing is left.

    Raises:
        ValueError: a point is not finite.
    """
    points = np.asarray(polygon, dtype=np.float64)
    if not np.isfinite(points).all():
        raise ValueError("A polygon has points that are not finite: an augmentation has scaled it beyond all numbers.")
    for axis, limit, sign in ((0, 0.0, 1), (0, float(width), -1), (1, 0.0, 1), (1, float(height), -1)):
        depth = sign * (points[:, axis] - limit)  # >= 0 inside
        if (depth >= 0).all():
            continue
        kept = []
        for i in range(len(points)):
            before, after = depth[i - 1], depth[i]
            if (before >= 0) != (after >= 0):
                share = 0.5 * before / (0.5 * before - 0.5 * after)  # differences of the largest numbers are infinite
                ends = points[[i - 1, i]]
                crossing = ends[0] * (1 - share) + ends[1] * share
                crossing = crossing.clip(ends.min(axis=0), ends.max(axis=0))  # rounding leaves the segment
                crossing[axis] = limit
                kept.append(crossing)
            if after >= 0:
                kept.append(points[i])
        points = np.array(kept).reshape(-1, 2)
    return points if len(points) >= 3 else np.zeros((0, 2))


def short_text(value: Any) -> str:
    """The beginning of a value's text."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
