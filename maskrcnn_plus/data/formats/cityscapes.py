"""Cityscapes: `NAME_gtFine_polygons.json` for each `NAME_leftImg8bit.png`, polygons of which later ones lie in front.

Cordts et al., "The Cityscapes Dataset", CVPR 2016; cityscapesScripts, helpers/labels.py (which classes have instances,
which are groups) and preparation/json2instanceImg.py (drawn in order). The border of a
polygon belongs to it, as Pillow draws it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from maskrcnn_plus.data.formats.annotated import Annotated, ImageFinder
from maskrcnn_plus.data.formats.files import list_tree, peek_json, read_json, split_of
from maskrcnn_plus.data.formats.options import ReadOptions
from maskrcnn_plus.data.formats.shapes import Shape, as_points, check_area
from maskrcnn_plus.masks.label_map import label_map_to_rles
from maskrcnn_plus.masks.measure import rle_areas
from maskrcnn_plus.masks.polygons import check_polygons

LOOKED_FOR = 'NAME_gtFine_polygons.json with "imgHeight" and "objects" (Cityscapes)'

INSTANCES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
"""The classes whose objects Cityscapes' benchmark counts."""

_REGIONS = (
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground"),
    *("road", "sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel"),
    *("pole", "polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky"),
    *("caravan", "trailer", "license plate"),  # these have instances, which the benchmark ignores
)


def matches(path: Path) -> bool:
    """Whether a folder, or a JSON file, is Cityscapes'."""
    return any(_is_cityscapes(peek_json(file)) for file in list_tree(path, (".json",)))


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read all JSON files of a folder that are Cityscapes', or one; classes of regions are left out.

    Raises:
        DataError: no file can be read that is Cityscapes'.
    """
    data = Annotated()
    root = path if path.is_dir() else path.parent
    finder = ImageFinder(root, data)
    for file, content in data.contents(path, (".json",), read_json, _is_cityscapes, LOOKED_FOR):
        base = file.stem.removesuffix("_polygons").removesuffix("_gtFine").removesuffix("_gtCoarse")
        image = finder.find_stem(base if base == file.stem else f"{base}_leftImg8bit", file.parent, say=True)
        if image is None or not data.is_new(image, str(file)):
            continue
        stated = content["imgHeight"], content.get("imgWidth")
        stated = stated if all(isinstance(side, int) and side > 0 for side in stated) else None
        size = data.drawn_size(image, stated, str(file))
        if size is not None:
            data.add_shapes(
                split_of(file, root), image, _read_objects(content, str(file), size, data), str(file), stated
            )
    return data


def _is_cityscapes(content: Any) -> bool:
    return isinstance(content, dict) and "imgHeight" in content and isinstance(content.get("objects"), list)


def _read_objects(content: dict[str, Any], where: str, size: tuple[int, int], data: Annotated) -> list[Shape] | None:
    """What is seen of each object in an image of `size` (H, W); None as of `Annotated.read_shapes`."""
    objects = [each for each in content["objects"] if not (isinstance(each, dict) and each.get("deleted"))]
    shapes = data.read_shapes(objects, where, partial(_read_polygon, size=size))
    if shapes is None:
        return None
    picture = Image.new("I", size[::-1])
    for number, shape in enumerate(shapes, start=1):
        ImageDraw.Draw(picture).polygon(shape.polygons[0].reshape(-1).tolist(), fill=number)
    rles = label_map_to_rles(np.asarray(picture), range(1, len(shapes) + 1))
    instances = []
    for shape, rle in zip(shapes, rles, strict=True):
        single = shape.label.removesuffix("group")
        is_group = single != shape.label and single in INSTANCES
        if shape.label in _REGIONS:
            data.assume(f"{shape.label!r} is a region, and no class of objects: left out", shape.where)
        elif not rle_areas([rle])[0]:
            data.assume("objects that others hide, left out", shape.where)
        else:
            instances.append(Shape(single if is_group else shape.label, shape.where, rle=rle, is_crowd=is_group))
    return instances


def _read_polygon(entry: dict[str, Any], place: str, size: tuple[int, int]) -> Shape:
    label = str(entry["label"]).strip()
    if not label:
        raise ValueError("it has no label. Give it one.")
    points = check_area(as_points(entry["polygon"]))
    check_polygons([points], *size)
    return Shape(label, place, [points])
