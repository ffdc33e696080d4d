"""Aperio ImageScope: NAME.xml beside NAME.svs or another image, Annotations/Annotation/Regions/Region/Vertices/Vertex.

A Region with NegativeROA="1" is a hole in the one of its Annotation around it. Type 0 is a polygon, 1 a rectangle, 2 an
ellipse between two corners; arrows and rulers have no area.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from maskrcnn_plus.data.formats.annotated import Annotated, ImageFinder
from maskrcnn_plus.data.formats.files import list_tree, split_of
from maskrcnn_plus.data.formats.options import ReadOptions
from maskrcnn_plus.data.formats.shapes import NoAreaError, Shape, as_points, check_area, ellipse, rectangle
from maskrcnn_plus.data.formats.xml_files import peek_tags, read_xml

LOOKED_FOR = "XML of Aperio ImageScope (<Annotations> with <Annotation> and <Region>)"

_CLASS = "object"


def matches(path: Path) -> bool:
    """Whether a folder, or an XML file, is Aperio's."""
    return any(_is_aperio(peek_tags(file)) for file in list_tree(path, (".xml",)))


def _is_aperio(tags: list[str]) -> bool:
    return tags[:2] == ["Annotations", "Annotation"]


def _is_layers(tree: Any) -> bool:
    return tree.tag == "Annotations" and tree.find("Annotation") is not None


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read all XML files of a folder that are Aperio's, or one.

    Raises:
        DataError: no file can be read that is Aperio's.
    """
    data = Annotated()
    root = path if path.is_dir() else path.parent
    finder = ImageFinder(root, data)
    for file, tree in data.contents(path, (".xml",), read_xml, _is_layers, LOOKED_FOR):
        image = finder.find_stem(file.stem, file.parent, say=True)
        if image is not None and data.is_new(image, str(file)):
            layers = [_read_layer(layer, file, data) for layer in tree.findall("Annotation")]
            shapes = [shape for layer in layers for shape in layer or ()]
            data.add_shapes(split_of(file, root), image, None if None in layers and not shapes else shapes, str(file))
    return data


def _read_layer(layer: Any, file: Path, data: Annotated) -> list[Shape] | None:
    """Shapes of an Annotation, with the holes that it has among its regions; None as of `Annotated.read_shapes`."""
    where = f"{file}, annotation {layer.get('Id', '?')}"
    label = _layer_name(layer)
    if not label:
        data.assume(f"annotations without a name, whose objects are of the class {_CLASS!r}", where)
        label = _CLASS
    regions = layer.findall("./Regions/Region")
    shapes = data.read_shapes(regions, where, lambda region, place: _read_region(region, place, label))
    if shapes is None:
        return None
    holes = {shape.where for shape in shapes if regions[_number(shape)].get("NegativeROA", "0") not in ("0", "")}
    objects = [shape for shape in shapes if shape.where not in holes]
    for hole in (shape for shape in shapes if shape.where in holes):
        points = hole.polygons[0]
        around = [shape for shape in objects if _contains(shape.polygons[0], points)]
        if around:
            min(around, key=lambda shape: np.ptp(shape.polygons[0], axis=0).prod()).holes.append(points)
        else:
            data.assume("holes (NegativeROA) that lie in no region, left out", hole.where)
    return objects


def _number(shape: Shape) -> int:
    return int(shape.where.rpartition(" ")[2])


def _layer_name(layer: Any) -> str:
    """Name of an Annotation: its own, else that of its first attribute, unless ImageScope itself named it."""
    attribute = layer.find("./Attributes/Attribute")
    names = [
        layer.get("Name", ""),
        *([] if attribute is None else [attribute.get("Value", ""), attribute.get("Name", "")]),
    ]
    return next((name.strip() for name in names if name.strip() not in ("", "Description")), "")


def _read_region(region: Any, place: str, label: str) -> Shape:
    kind = region.get("Type", "0")
    if kind not in ("0", "1", "2"):
        raise NoAreaError("an arrow or ruler")
    vertices = [*region.iter("Vertex"), *region.iter("V")]
    points = as_points([[vertex.get("X", ""), vertex.get("Y", "")] for vertex in vertices] or np.zeros((0, 2)))
    if kind != "0" and len(points) == 2:
        (x0, y0), (x1, y1) = points.tolist()
        if kind == "2":
            points = ellipse((x0 + x1) / 2, (y0 + y1) / 2, abs(x1 - x0) / 2, abs(y1 - y0) / 2)
        else:
            points = rectangle(x0, y0, x1, y1)
    return Shape(label, place, [check_area(points)], is_box=kind == "1")


def _contains(outer: np.ndarray, inner: np.ndarray) -> bool:
    """Whether most points of a polygon are within another one, both [P, 2]."""
    outline = outer.astype(np.float32).reshape(-1, 1, 2)
    inside = [cv2.pointPolygonTest(outline, point, False) >= 0 for point in inner.tolist()]
    return 2 * sum(inside) > len(inside)
