"""QuPath's GeoJSON: a file NAME.geojson an image NAME, a FeatureCollection or a list of features.

A feature has a `geometry` in pixels of the image (Polygon, whose further rings are holes, or MultiPolygon), and in its
`properties` a `classification` with `name`. So are the files that this package writes (`results/geojson.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskrcnn_plus.data.formats.annotated import Annotated, ImageFinder
from maskrcnn_plus.data.formats.files import list_tree, peek_json, read_json, split_of
from maskrcnn_plus.data.formats.options import ReadOptions
from maskrcnn_plus.data.formats.shapes import NoAreaError, Shape, as_points, check_area

LOOKED_FOR = "GeoJSON with a FeatureCollection or a list of features (QuPath)"

_SUFFIXES = (".geojson", ".json")
_CLASS = "object"


def matches(path: Path) -> bool:
    """Whether a folder, or a file, is QuPath's."""
    return any(_features(peek_json(file)) is not None for file in list_tree(path, _SUFFIXES))


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read all files of a folder that are QuPath's, or one.

    Raises:
        DataError: no file can be read that is QuPath's.
    """
    data = Annotated()
    root = path if path.is_dir() else path.parent
    finder = ImageFinder(root, data)

    def read_feature(feature: Any, place: str) -> Shape:
        return _read_feature(feature, place, data)

    for file, content in data.contents(path, _SUFFIXES, read_json, _has_features, LOOKED_FOR):
        image = finder.find_stem(file.stem, file.parent, say=True)
        if image is not None and data.is_new(image, str(file)):
            shapes = data.read_shapes(_features(content) or [], str(file), read_feature)
            data.add_shapes(split_of(file, root), image, shapes, str(file))
    if path.is_dir():
        finder.note_left_out("have no GeoJSON")
    return data


def _has_features(content: Any) -> bool:
    return _features(content) is not None


def _features(content: Any) -> list[Any] | None:
    """Features of a file; None where it has none of its kind."""
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        content = content.get("features")
        return content if isinstance(content, list) else None
    if isinstance(content, dict) and content.get("type") == "Feature":
        return [content]
    is_list = isinstance(content, list) and content and isinstance(content[0], dict)
    return content if is_list and content[0].get("type") == "Feature" else None


def _read_feature(feature: dict[str, Any], place: str, data: Annotated) -> Shape:
    geometry, properties = feature["geometry"], feature.get("properties") or {}
    classification = properties.get("classification") or {}
    if isinstance(classification, dict):  # "names" of a class in parts, as Tumor: Positive
        parts = classification.get("names")
        names = ": ".join(map(str, parts)) if isinstance(parts, list) else None
        classification = classification.get("name") or names
    shape = Shape(str(classification or _CLASS), place)
    for number, (is_hole, ring) in enumerate(_rings(geometry)):
        points = as_points([point[:2] for point in ring])  # a third number is the plane
        try:
            (shape.holes if is_hole else shape.polygons).append(check_area(points))
        except NoAreaError:
            if number == 0 and geometry["type"] == "Polygon":
                raise
    if not shape.polygons:
        raise NoAreaError("a polygon without area")
    if not classification:
        data.assume(f"objects without classification, which are of the class {_CLASS!r}", place)
    return shape


def _rings(geometry: dict[str, Any], depth: int = 0) -> Iterator[tuple[bool, Any]]:
    """Rings of a geometry, and whether each is a hole."""
    kind = geometry["type"]
    if kind == "GeometryCollection" and depth == 0:
        for each in geometry["geometries"]:
            yield from _rings(each, depth + 1)
    elif kind in ("Polygon", "MultiPolygon"):
        for polygon in [geometry["coordinates"]] if kind == "Polygon" else geometry["coordinates"]:
            yield from ((index > 0, ring) for index, ring in enumerate(polygon))
    elif kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise NoAreaError("a point" if "Point" in kind else "an open line")
    else:
        raise ValueError(f"a {str(kind)[:40]} is not understood. Draw a polygon, or remove it.")
