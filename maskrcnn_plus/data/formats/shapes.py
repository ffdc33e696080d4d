"""What annotation tools let people draw, as points and runs.

Shape shorthand: P points; h x w pixels of a mask's own box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskrcnn_plus.masks.label_map import masks_to_rles
from maskrcnn_plus.masks.measure import move_rles, rle_union
from maskrcnn_plus.masks.polygons import clip_polygon, polygons_to_mask

ELLIPSE_POINTS = 64

_OPEN = 0.5  # of its length that the ends of a closed line may be apart


class NoAreaError(ValueError):
    """A shape that has no pixels by its kind or by a slip: a point, a line, a polygon of two points."""


class NoClassError(NoAreaError):
    """A shape of which nobody has said what it is."""


class OutsideError(ValueError):
    """A shape of which nothing is within its image."""


@dataclass
class Shape:
    """An object in pixels of the image that the tool showed: polygons, or runs, or both.

    Attributes:
        label: name of its class.
        where: the shape in messages.
        polygons: float64 [P, 2] (x, y) of each part.
        holes: float64 [P, 2] of what is cut out of the polygons.
        rle: further pixels, an RLE of the whole image.
        is_box: whether it is a drawn rectangle, which tells nothing of an outline.
        is_line: whether it is a line that ends near its start, taken as an outline.
        is_crowd: whether it is a region of many objects.
        group: shapes of one label and group are parts of one object; None is alone.
    """

    label: str
    where: str
    polygons: list[np.ndarray] = field(default_factory=list)
    holes: list[np.ndarray] = field(default_factory=list)
    rle: dict[str, Any] | None = None
    is_box: bool = False
    is_line: bool = False
    is_crowd: bool = False
    group: str | None = None


def as_points(values: Any) -> np.ndarray:
    """Points float64 [P, 2] of [[x, y], ...] or [x, y, x, y, ...].

    Raises:
        ValueError: it is something else, or not finite.
    """
    try:
        points = np.asarray(values, dtype=np.float64)
        points = points.reshape(-1, 2) if points.ndim == 1 else points
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"its points are {str(values)[:60]}; they must be x and y of each.") from error
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"its points are {str(values)[:60]}; they must be finite x and y of each.")
    return points


def check_area(points: np.ndarray) -> np.ndarray:
    """The points [P, 2] of a polygon.

    Raises:
        NoAreaError: they are fewer than 3, or on a line.
    """
    if len(points) < 3:
        raise NoAreaError(f"a polygon of {len(points)} points")
    x, y = (points - points[0]).T
    if x @ np.roll(y, -1) == y @ np.roll(x, -1):
        raise NoAreaError("a polygon without area")
    return points


def close_line(points: np.ndarray) -> np.ndarray:
    """A line [P, 2] that ends near its start, as the outline that it is.

    Raises:
        NoAreaError: it is open.
    """
    length = np.hypot(*np.diff(points, axis=0).T).sum()
    if len(points) < 3 or np.hypot(*(points[-1] - points[0])) > _OPEN * length:
        raise NoAreaError("an open line")
    return check_area(points)


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0) -> np.ndarray:
    """Points [64, 2] of an ellipse around (x, y) with half axes rx and ry, turned clockwise on the screen."""
    angles = np.arange(ELLIPSE_POINTS) * (2 * np.pi / ELLIPSE_POINTS)
    return turn(np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1), degrees, (x, y))


def rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Corners [4, 2] of a rectangle."""
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=np.float64)


def is_rectangle(mask: Any) -> bool:
    """Whether a `segmentation` is one polygon [x, y, x, y, ...] of the corners of its box."""
    if not isinstance(mask, list) or len(mask) != 1 or not isinstance(mask[0], list) or len(mask[0]) not in (8, 10):
        return False
    if not all(isinstance(value, int | float) for value in mask[0]):
        return False
    x, y = mask[0][0::2], mask[0][1::2]
    return len(set(x)) == 2 and len(set(y)) == 2 and len(set(zip(x, y, strict=True))) == 4


def turn(points: np.ndarray, degrees: float, center: Sequence[float]) -> np.ndarray:
    """Points [P, 2] turned around a point, clockwise on the screen, where y points down."""
    if not degrees:
        return points
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return (points - center) @ np.array([[cos, sin], [-sin, cos]]) + center


def mask_rle(part: np.ndarray, x: int, y: int, size: tuple[int, int]) -> dict[str, Any]:
    """RLE of a mask bool [h, w] whose upper left pixel is at (x, y) of an image of `size` (H, W).

    Raises:
        ValueError: it is empty, or not within the image.
    """
    if not part.any():
        raise ValueError("its mask is empty. Redraw or remove it.")
    if x < 0 or y < 0 or y + part.shape[0] > size[0] or x + part.shape[1] > size[1]:
        raise ValueError(f"its mask of {part.shape[0]} x {part.shape[1]} at x {x}, y {y} is not within the image.")
    return move_rles(masks_to_rles(part[None]), x, y, *size)[0]


def draw(polygons: Sequence[np.ndarray], holes: Sequence[np.ndarray], size: tuple[int, int]) -> dict[str, Any]:
    """RLE of polygons [P, 2] without their holes [P, 2] in an image of `size` (H, W).

    Raises:
        ValueError: a polygon lies far outside of the image, or nothing is left.
    """
    low = np.floor(np.concatenate(polygons).min(axis=0)).clip(0, size[::-1]).astype(int)
    high = np.ceil(np.concatenate(polygons).max(axis=0)).clip(0, size[::-1]).astype(int)
    width, height = high - low
    if width < 1 or height < 1:
        raise ValueError(f"it is outside of the image of {size[0]} high x {size[1]} wide.")
    outer, inner = (
        [clip_polygon(each - low, width, height).reshape(-1) for each in kind] for kind in (polygons, holes)
    )
    mask = polygons_to_mask([each for each in outer if each.size], height, width)
    mask &= ~polygons_to_mask([each for each in inner if each.size], height, width)
    return mask_rle(mask, *low.tolist(), size)


def unite(shape: Shape, size: tuple[int, int]) -> Shape:
    """A shape of runs alone, where it has runs beside polygons, or holes."""
    if not shape.holes and (shape.rle is None or not shape.polygons):
        return shape
    drawn = [draw(shape.polygons, shape.holes, size)] if shape.polygons else []
    rle = rle_union([*drawn, *([shape.rle] if shape.rle else [])])
    return Shape(shape.label, shape.where, rle=rle, is_crowd=shape.is_crowd)


def join_groups(shapes: Sequence[Shape]) -> list[Shape]:
    """Shapes of which those with one label and group are one object of several parts."""
    joined: dict[Any, Shape] = {}
    for number, shape in enumerate(shapes):
        first = joined.setdefault(number if shape.group is None else (shape.label, shape.group), shape)
        if first is not shape:
            first.polygons += shape.polygons
            first.holes += shape.holes
            rles = [each.rle for each in (first, shape) if each.rle]
            first.rle = rle_union(rles) if rles else None
            first.is_box &= shape.is_box
    return list(joined.values())
