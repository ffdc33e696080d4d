"""VIA (VGG Image Annotator) 1 and 2: JSON of an image a key, whole projects, and csv with JSON in its columns.

{"NAME12345": {"filename", "size", "regions": {"0": region} or [region]}}; a region has `shape_attributes` ("name":
polygon, polyline, rect, circle, ellipse, point) and `region_attributes`, any of which may name the class. The size of
the image stands nowhere.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maskrcnn_plus.data.formats.annotated import Annotated, ImageFinder
from maskrcnn_plus.data.formats.attributes import choose_attribute
from maskrcnn_plus.data.formats.files import list_tree, peek_json, read_json, split_of
from maskrcnn_plus.data.formats.options import ReadOptions
from maskrcnn_plus.data.formats.shapes import (
    NoAreaError,
    NoClassError,
    Shape,
    as_points,
    check_area,
    close_line,
    ellipse,
    rectangle,
)
from maskrcnn_plus.data.formats.via_csv import is_via_csv, read_via_csv

LOOKED_FOR = 'JSON of VIA (images with "filename" and "regions"), or its csv'
OPTIONS = ("attribute",)

_CLASS = "object"


class _Image(NamedTuple):
    """An image of a file.

    Attributes:
        file: the annotation file.
        name: of the image.
        regions: as they stand there.
    """

    file: Path
    name: str
    regions: list[Any]


def matches(path: Path) -> bool:
    """Whether a folder, or a file, holds annotations of VIA."""
    found = any(_metadata(peek_json(file)) is not None for file in list_tree(path, (".json",)))
    return found or any(is_via_csv(file) for file in list_tree(path, (".csv",)))


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read all files of a folder that are VIA's, or one.

    Raises:
        DataError: no file can be read that is VIA's, or no object has the attribute that is asked for.
    """
    data = Annotated()
    root = path if path.is_dir() else path.parent
    images = _list_images(path, data)
    attribute = choose_attribute(
        [_attributes(region) for image in images for region in image.regions], options.attribute, data.notes
    )
    if attribute is None and any(image.regions for image in images):
        data.notes.append(f"the objects have no attributes: all are of the class {_CLASS!r}.")
    values = {value for image in images for region in image.regions if (value := _attributes(region).get(attribute))}
    only = _CLASS if attribute is None else next(iter(values)) if len(values) == 1 else None
    finder = ImageFinder(root, data)
    known: dict[Path, list[Any]] = {}

    def read_shape(region: Any, place: str) -> Shape:
        found = _attributes(region)
        label = found.get(attribute)
        if label is None:
            known_values = values.intersection(found.values()) if options.attribute is None else ()
            label = only if len(known_values) != 1 else next(iter(known_values))
            if label is not None and attribute is not None:
                data.assume(f"objects without a value of {attribute!r}, which were taken for {label!r}", place)
        if label is None:
            raise NoClassError(f"an object without a value of {attribute!r}")
        return _read_shape(region["shape_attributes"], label, place)

    for image in images:
        file, where = finder.find(image.name, image.file), f"{image.file}, image {image.name!r}"
        if file is None:
            continue
        if known.setdefault(file, image.regions) is not image.regions and known[file] == image.regions:
            data.assume("images that two files annotate alike", str(file))
        elif data.is_new(file, where):
            data.add_shapes(split_of(file, root), file, data.read_shapes(image.regions, where, read_shape), where)
    finder.note_left_out("are in no file of VIA")
    return data


def _list_images(path: Path, data: Annotated) -> list[_Image]:
    images = []
    for file, content in data.contents(path, (".json", ".csv"), partial(_read_file, data=data), bool, LOOKED_FOR):
        for key, each in content.items():
            regions = (each.get("regions") or []) if isinstance(each, dict) else None
            regions = list(regions.values()) if isinstance(regions, dict) else regions
            if not isinstance(regions, list) or not isinstance(each.get("filename"), str):
                data.problems.append(f"{file}, image {key!r}: it has no filename, or no list of regions.")
            else:
                images.append(_Image(file, each["filename"], regions))
    return images


def _read_file(file: Path, data: Annotated) -> dict[str, Any] | None:
    """The images of a file by key; None of a file that is not VIA's."""
    if file.suffix.lower() == ".json":
        return _metadata(read_json(file))
    if not is_via_csv(file):
        return None
    return {name: {"filename": name, "regions": regions} for name, regions in read_via_csv(file, data).items()}


def _metadata(content: Any) -> dict[str, Any] | None:
    """The images of a file by key; None where it is not VIA's."""
    if not isinstance(content, dict):
        return None
    if isinstance(content.get("_via_img_metadata"), dict):
        return content["_via_img_metadata"]
    first = next((each for each in content.values() if isinstance(each, dict)), {})
    return content if {"filename", "regions"} <= first.keys() else None


def _attributes(region: Any) -> dict[str, str]:
    """Filled attributes of a region; of boxes that are ticked, the names of those that are."""
    found = region.get("region_attributes") if isinstance(region, dict) else None
    values = {}
    for name, value in (found if isinstance(found, dict) else {}).items():
        if isinstance(value, dict):
            value = ", ".join(str(key) for key, ticked in value.items() if ticked)
        if value is not None and value == value and not isinstance(value, list) and str(value).strip():  # no NaN
            values[str(name)] = str(value).strip()
    return values


def _read_shape(shape: dict[str, Any], label: str, place: str) -> Shape:
    kind = shape["name"]
    drawn = Shape(label, place, is_box=kind == "rect", is_line=kind == "polyline")
    if kind == "point":
        raise NoAreaError("a point")
    if kind in ("polygon", "polyline"):
        x, y = shape["all_points_x"], shape["all_points_y"]
        if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y):
            raise ValueError("all_points_x and all_points_y must be lists of one length. Redraw or remove it.")
        points = as_points(list(zip(x, y, strict=True)))
        drawn.polygons = [close_line(points) if kind == "polyline" else check_area(points)]
    elif kind == "rect":
        x, y, width, height = _numbers(shape, "x", "y", "width", "height")
        drawn.polygons = [check_area(rectangle(x, y, x + width, y + height))]
    elif kind in ("circle", "ellipse"):
        x, y, *radii = _numbers(shape, "cx", "cy", *(("r", "r") if kind == "circle" else ("rx", "ry")))
        degrees = float(np.degrees(float(shape.get("theta") or 0)))
        drawn.polygons = [check_area(ellipse(x, y, *radii, degrees))]
    else:
        raise ValueError(f"a {str(kind)[:40]} is not understood. Draw a polygon, or remove it.")
    return drawn


def _numbers(shape: dict[str, Any], *names: str) -> list[float]:
    return as_points([float(shape[name]) for name in names]).reshape(-1).tolist()
