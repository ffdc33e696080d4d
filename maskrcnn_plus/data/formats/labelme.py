"""LabelMe: a JSON file an image, {"imagePath": ..., "shapes": [{"label", "shape_type", "points", "group_id"}, ...]}."""

from __future__ import annotations

import base64
import binascii
import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_plus.data.formats.annotated import Annotated, ImageFinder
from maskrcnn_plus.data.formats.embedded import extract_image
from maskrcnn_plus.data.formats.files import list_tree, peek_json, read_json, split_of
from maskrcnn_plus.data.formats.options import ReadOptions
from maskrcnn_plus.data.formats.shapes import (
    NoAreaError,
    Shape,
    as_points,
    check_area,
    close_line,
    ellipse,
    join_groups,
    mask_rle,
    rectangle,
)

LOOKED_FOR = 'JSON files with "shapes" and "imagePath"'

_LINES = ("line", "linestrip")
_POINTS = ("point", "points")
_IGNORED = "__ignore__"  # of the list of labels that its converters take
_EMBEDDED = "images that are not there, and were taken from the JSON files that hold them"


def matches(path: Path) -> bool:
    """Whether a folder, or a JSON file, is LabelMe's."""
    return any(_is_labelme(peek_json(file)) for file in list_tree(path, (".json",)))


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read all JSON files of a folder that are LabelMe's, or one.

    Raises:
        DataError: no file can be read that is LabelMe's.
    """
    data = Annotated()
    root = path if path.is_dir() else path.parent
    finder = ImageFinder(root, data)
    for file, content in data.contents(path, (".json",), read_json, _is_labelme, LOOKED_FOR):
        image = _find_image(content, file, finder, data)
        if image is None or not data.is_new(image, str(file)):
            continue
        stated = _stated_size(content)
        size = data.drawn_size(image, stated, str(file))
        if size is not None:
            shapes = data.read_shapes(content["shapes"], str(file), partial(_read_shape, size=size))
            data.add_shapes(split_of(file, root), image, shapes and join_groups(shapes), str(file), stated)
    if path.is_dir():
        finder.note_left_out("have no JSON file")
    return data


def _is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def _find_image(content: dict[str, Any], file: Path, finder: ImageFinder, data: Annotated) -> Path | None:
    """The image of a file, or the copy that the file holds, kept in the cache folder."""
    name, text = str(content.get("imagePath") or ""), content.get("imageData")
    image = finder.find(name, file, not text, _stated_size(content))
    if image is None and text:
        try:
            image = extract_image(text, file.stem)
            data.assume(_EMBEDDED, str(file))
        except (ValueError, OSError) as error:
            data.problems.append(f"{file}: its image {name!r} is not there, and its imageData is unusable: {error}")
    return image


def _stated_size(content: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) that a file states, None where it states none or nonsense."""
    try:
        size = int(content["imageHeight"]), int(content["imageWidth"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def _read_shape(entry: Any, place: str, size: tuple[int, int]) -> Shape:
    """A shape in an image of `size` (H, W)."""
    if not isinstance(entry, dict) or not str(entry.get("label") or "").strip():
        raise ValueError("it has no label. Give it one.")
    kind = entry.get("shape_type") or "polygon"
    group = entry.get("group_id")
    if entry["label"] == _IGNORED:
        raise NoAreaError("a region to ignore")
    shape = Shape(str(entry["label"]), place, group=None if group is None else str(group))
    if kind in _POINTS:
        raise NoAreaError("a point")
    points = as_points(entry.get("points", []))
    if kind == "mask":
        shape.rle = _read_mask(entry.get("mask"), points, size)
    elif kind in _LINES:
        shape.polygons, shape.is_line = [close_line(points)], True
    elif kind == "circle":
        _need(points, kind, 2)
        radius = float(np.hypot(*(points[1] - points[0])))
        shape.polygons = [check_area(ellipse(*points[0].tolist(), radius, radius))]
    elif kind == "rectangle" and len(points) <= 2:
        _need(points, kind, 2)
        shape.polygons, shape.is_box = [check_area(rectangle(*points.reshape(-1).tolist()))], True
    elif kind in ("polygon", "rectangle", "rotation"):
        shape.polygons, shape.is_box = [check_area(points)], kind != "polygon"
    else:
        raise ValueError(f"a {str(kind)[:40]} is not understood. Draw a polygon, or remove it.")
    return shape


def _need(points: np.ndarray, kind: str, count: int) -> None:
    if len(points) < count:
        raise NoAreaError(f"a {kind} of {len(points)} points")


def _read_mask(text: Any, points: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """RLE of a PNG in base64 whose upper left pixel is the first point."""
    if not isinstance(text, str) or not len(points):
        raise ValueError("a mask without its picture or place. Redraw or remove it.")
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as picture:
            if picture.width > size[1] or picture.height > size[0]:
                raise ValueError(f"its mask of {picture.height} x {picture.width} is larger than the image.")
            part = np.asarray(picture.convert("L")) > 0  # [h, w]
    except (binascii.Error, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"its mask is no PNG in base64 ({error}). Redraw or remove it.") from error
    x, y = (int(value) for value in points[0])
    return mask_rle(part, x, y, size)
