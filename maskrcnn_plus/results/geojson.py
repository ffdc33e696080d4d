"""Outlines as GeoJSON (RFC 7946) with the properties that QuPath 0.4 and later reads ("Import objects").

QuPath, `QuPathTypeAdapters`: a feature has a `geometry` in pixels of the full image, and in `properties` its
`objectType`, a `classification` with name and colour, and `measurements`, a number by name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

import supervision as sv

from maskrcnn_plus.masks.measure import rle_areas, rle_perimeters
from maskrcnn_plus.results.outlines import rle_polygons
from maskrcnn_plus.results.overlay import class_label, class_shades

if TYPE_CHECKING:
    from detectron2.structures import Instances


OBJECT_TYPES = ("detection", "annotation")
"""Detections are many and stay as they are; annotations can be edited, and detections are found within them."""


def write_geojson(
    file: IO[bytes],
    instances: Instances,
    class_names: Sequence[str] | None = None,
    pixel_size: float | None = None,
    object_type: str = "detection",
) -> None:
    """Write a FeatureCollection with a feature an object.

    Coordinates are those of pixel edges: the first pixel is the square from (0, 0) to (1, 1). A polygon covers the
    pixels of the mask, holes left out; outer rings run counterclockwise by RFC 7946 (x to the right, y taken upward),
    holes clockwise. A mask in several parts is a MultiPolygon; one without pixels has no feature.

    Args:
        file: binary file to write to.
        instances: with `scores`, `pred_classes` and `pred_masks_rle`.
        class_names: name of each class.
        pixel_size: micrometres a pixel, for the measures of area and perimeter; None measures in pixels.
        object_type: "detection" or "annotation".
    """
    unit, side = ("px", 1.0) if pixel_size is None else ("µm", pixel_size)
    rles = instances.pred_masks_rle
    areas, perimeters = (rle_areas(rles) * side**2).tolist(), (rle_perimeters(rles) * side).tolist()
    objects = zip(
        instances.scores.tolist(),
        instances.pred_classes.tolist(),
        rle_polygons(rles),
        areas,
        perimeters,
        strict=True,
    )
    file.write(b'{"type": "FeatureCollection", "features": [')
    separator = b"\n"
    for index, (score, category, polygons, area, perimeter) in enumerate(objects, start=1):
        if not polygons:
            continue
        coordinates = [[[*ring.tolist(), ring[0].tolist()] for ring in polygon] for polygon in polygons]
        feature = {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": coordinates[0]}
            if len(polygons) == 1
            else {"type": "MultiPolygon", "coordinates": coordinates},
            "properties": {
                "objectType": object_type,
                "classification": {
                    "name": class_label(class_names, category),
                    "color": list(sv.Color.from_hex(class_shades(category)[0]).as_rgb()),
                },
                "measurements": {
                    "label_id": index,
                    "score": score,
                    f"Area {unit}^2": area,
                    f"Perimeter {unit}": perimeter,
                },
            },
        }
        file.write(separator + json.dumps(feature).encode())
        separator = b",\n"
    file.write(b"\n]}\n")
