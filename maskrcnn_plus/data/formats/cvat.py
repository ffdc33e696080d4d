"""CVAT for images 1.1: XML, <annotations><image name width height><polygon|box|ellipse|mask label .../></image>.

Files of a video, with <track>, are taken apart by `cvat_video`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_plus.data.formats.annotated import Annotated, ImageFinder
from maskrcnn_plus.data.formats.cvat_video import read_frames
from maskrcnn_plus.data.formats.files import WHOLE, list_tree, split_of
from maskrcnn_plus.data.formats.options import ReadOptions
from maskrcnn_plus.data.formats.shapes import (
    NoAreaError,
    Shape,
    as_points,
    check_area,
    close_line,
    ellipse,
    mask_rle,
    rectangle,
    turn,
)
from maskrcnn_plus.data.formats.xml_files import peek_tags, read_xml

LOOKED_FOR = "XML files of CVAT (<annotations> with <image> or <track>)"
OPTIONS = ("attribute",)


def matches(path: Path) -> bool:
    """Whether a folder, or an XML file, is CVAT's."""
    return any(_is_cvat(peek_tags(file)) for file in list_tree(path, (".xml",)))


def _is_cvat(tags: list[str]) -> bool:
    return tags[:1] == ["annotations"] and ("image" in tags or "track" in tags or "meta" in tags)


def _has_images(tree: Any) -> bool:
    return tree.tag == "annotations" and (tree.find("image") is not None or tree.find("track") is not None)


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read all XML files of a folder that are CVAT's, or one.

    Raises:
        DataError: a file cannot be read, is of a video without its frames, or none is CVAT's.
    """
    data = Annotated()
    root = path if path.is_dir() else path.parent
    finder = ImageFinder(root, data)
    for file, tree in data.contents(path, (".xml",), read_xml, _has_images, LOOKED_FOR):
        if tree.find("track") is None:
            images = _read_images(tree, file, finder)
        else:
            images = read_frames(tree, file, finder.files, data)
        for image, where, element in images:
            if not data.is_new(image, where):
                continue
            stated = _stated_size(element)
            size = data.drawn_size(image, stated, where)
            if size is not None:
                shapes = data.read_shapes(element, where, partial(_read_shape, size=size, attribute=options.attribute))
                split = split_of(Path(element.get("subset", ""), "x"), Path())
                split = split_of(image, root) if split == WHOLE else split
                data.add_shapes(split, image, shapes, where, stated)
    return data


def _read_images(tree: Any, file: Path, finder: ImageFinder) -> Iterator[tuple[Path, str, Any]]:
    """The images of a file that are there, their place in messages, and their elements, whose children are shapes."""
    for element in tree.iter("image"):
        name = "/".join(filter(None, (element.get("subset"), element.get("name"))))  # a project has a folder a subset
        size = _stated_size(element)
        image = finder.find(name, file.parent / "images" / "x", False, size) or finder.find(name, file, size=size)
        if image is not None:
            yield image, f"{file}, image {name!r}", element


def _stated_size(element: Any) -> tuple[int, int] | None:
    """(height, width) that an <image> states."""
    try:
        size = int(element.get("height", "")), int(element.get("width", ""))
    except ValueError:
        return None
    return size if min(size) > 0 else None


def _read_shape(shape: Any, place: str, size: tuple[int, int], attribute: str | None) -> Shape:
    """A shape of an image of `size` (H, W)."""
    if shape.tag in ("tag", "points", "cuboid", "skeleton"):
        raise NoAreaError({"tag": "a tag of the whole image", "points": "a point"}.get(shape.tag, f"a {shape.tag}"))
    if shape.tag not in ("polygon", "polyline", "box", "ellipse", "mask"):
        raise ValueError(f"<{shape.tag}> is not understood. Draw a polygon, box, ellipse or mask, or remove it.")
    label = shape.get("label")
    if attribute is not None:
        label = next((each.text for each in shape.iter("attribute") if each.get("name") == attribute), None)
    if not (label or "").strip():
        what = "label" if attribute is None else f"attribute {attribute!r}"
        raise ValueError(f"this {shape.tag} has no {what}. Give it one.")
    drawn = Shape(label, place, is_box=shape.tag == "box", is_line=shape.tag == "polyline")
    if shape.tag == "mask":
        drawn.rle = _read_mask(shape, size)
        return drawn
    if shape.tag in ("polygon", "polyline"):
        points = as_points([pair.split(",") for pair in shape.get("points", "").split(";")])
        drawn.polygons = [close_line(points) if shape.tag == "polyline" else check_area(points)]
        return drawn
    degrees = float(shape.get("rotation", 0))
    if shape.tag == "box":
        points = rectangle(*_numbers(shape, "xtl", "ytl", "xbr", "ybr"))
        points = turn(points, degrees, points.mean(axis=0))
    else:
        points = ellipse(*_numbers(shape, "cx", "cy", "rx", "ry"), degrees)
    drawn.polygons = [check_area(as_points(points))]
    return drawn


def _numbers(shape: Any, *names: str) -> list[float]:
    return [float(shape.get(name, "")) for name in names]


def _read_mask(shape: Any, size: tuple[int, int]) -> dict[str, Any]:
    """RLE of runs, background first, of the row-major pixels of a box."""
    x, y, width, height = (int(value) for value in _numbers(shape, "left", "top", "width", "height"))
    if min(x, y) < 0 or min(width, height) < 1 or x + width > size[1] or y + height > size[0]:
        raise ValueError(f"its mask of {height} x {width} at x {x}, y {y} is not within the image.")
    runs = [int(value) for value in shape.get("rle", "").split(",")]
    if min(runs) < 0 or sum(runs) != height * width or not any(runs[1::2]):
        raise ValueError(f"its runs are empty or do not add up to {height} x {width} pixels. Redraw or remove it.")
    part = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)  # [h * w] -> [h, w]
    return mask_rle(part, x, y, size)
