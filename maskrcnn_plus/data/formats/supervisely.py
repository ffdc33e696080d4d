"""Supervisely: a folder a data set, with `ann/IMAGE.json` for each `img/IMAGE`, and a meta.json of the project.

Points are pixels, whose centres are meant; a rectangle holds the pixels of both of its corners. A bitmap is a PNG,
compressed by zlib and written in base64, whose upper left pixel is at `origin`.
"""

from __future__ import annotations

import base64
import binascii
import io
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_plus.data.formats.annotated import Annotated, ImageFinder
from maskrcnn_plus.data.formats.files import list_tree, peek_json, read_json, split_of
from maskrcnn_plus.data.formats.options import ReadOptions
from maskrcnn_plus.data.formats.shapes import NoAreaError, Shape, as_points, check_area, close_line, mask_rle, rectangle

LOOKED_FOR = 'JSON files of Supervisely ("size" and "objects" with "classTitle")'
OPTIONS = ("attribute",)

_WITHOUT_AREA = {"point": "a point", "graph": "a graph of key points", "cuboid": "a cuboid", "cuboid_2d": "a cuboid"}


def matches(path: Path) -> bool:
    """Whether a folder, or a JSON file, is Supervisely's."""
    return any(_is_supervisely(peek_json(file)) for file in list_tree(path, (".json",)))


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read all JSON files of a folder that are annotations of Supervisely, or one.

    Raises:
        DataError: no file can be read that is Supervisely's.
    """
    data = Annotated()
    root = path if path.is_dir() else path.parent.parent
    finder = ImageFinder(root, data)
    for file, content in data.contents(path, (".json",), read_json, _is_supervisely, LOOKED_FOR, ("meta.json",)):
        image = finder.find_stem(file.stem, file.parent.parent / "img", say=True)
        if image is None or not data.is_new(image, str(file)):
            continue
        stated = content["size"].get("height"), content["size"].get("width")
        stated = stated if all(isinstance(side, int) and side > 0 for side in stated) else None
        size = data.drawn_size(image, stated, str(file))
        if size is not None:
            if content.get("tags"):
                data.assume("images with tags, which were left out", str(image))
            read_shape = partial(_read_shape, size=size, attribute=options.attribute)
            shapes = data.read_shapes(content["objects"], str(file), read_shape)
            data.add_shapes(split_of(file, root), image, shapes, str(file), stated)
    return data


def _is_supervisely(content: Any) -> bool:
    if not isinstance(content, dict) or not isinstance(content.get("size"), dict):
        return False
    objects = content.get("objects")
    return isinstance(objects, list) and all(isinstance(each, dict) and "classTitle" in each for each in objects[:1])


def _read_shape(entry: dict[str, Any], place: str, size: tuple[int, int], attribute: str | None) -> Shape:
    """An object of an image of `size` (H, W)."""
    kind = "bitmap" if entry.get("bitmap") else entry.get("geometryType") or "polygon"  # alpha_mask is a bitmap too
    if kind in _WITHOUT_AREA:
        raise NoAreaError(_WITHOUT_AREA[kind])
    label = entry["classTitle"]
    if attribute is not None:
        tags = {each.get("name"): each.get("value") for each in entry.get("tags") or []}
        label = tags.get(attribute)
    if label is None or not str(label).strip():
        raise ValueError(f"it has no {'class' if attribute is None else f'tag {attribute!r}'}. Give it one.")
    shape = Shape(str(label), place)
    if kind == "bitmap":
        shape.rle = _read_bitmap(entry["bitmap"], size)
        return shape
    points = as_points(entry["points"]["exterior"])
    if kind == "polygon":
        shape.polygons = [check_area(points + 0.5)]
        shape.holes = [as_points(hole) + 0.5 for hole in entry["points"].get("interior") or []]
    elif kind == "line":
        shape.polygons, shape.is_line = [close_line(points + 0.5)], True
    elif kind == "rectangle":
        low, high = points.min(axis=0), points.max(axis=0) + 1
        shape.polygons, shape.is_box = [check_area(rectangle(*low, *high))], True
    else:
        raise ValueError(f"a {str(kind)[:40]} is not understood. Draw a polygon or bitmap, or remove it.")
    return shape


def _read_bitmap(bitmap: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """RLE of a bitmap: of a picture with alpha that, else what is not 0."""
    x, y = (int(value) for value in bitmap["origin"])
    try:
        compressed = base64.b64decode(bitmap["data"], validate=True)
        content = zlib.decompressobj().decompress(compressed, 8 * size[0] * size[1] + (1 << 16))
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            if picture.width > size[1] or picture.height > size[0]:
                raise ValueError(f"its bitmap of {picture.height} x {picture.width} is larger than the image.")
            pixels = np.asarray(picture)  # [h, w] or [h, w, C]
    except (binascii.Error, zlib.error, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"its bitmap is no compressed PNG in base64 ({error}). Redraw or remove it.") from error
    part = pixels if pixels.ndim == 2 else pixels[:, :, 3] if pixels.shape[2] == 4 else pixels.max(axis=2)
    return mask_rle(part > 0, x, y, size)
