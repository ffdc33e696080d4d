"""Predictions as answers: JSON for programs, outlines for the page, and the files that tools/predict.py writes.

Shape shorthand: N objects of an image of H x W pixels.
"""

from __future__ import annotations

import math
import tempfile
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from maskrcnn_plus.apps.predict_files.sources import SourceImage
from maskrcnn_plus.data.channels import get_rule
from maskrcnn_plus.data.limits import pixel_limit
from maskrcnn_plus.data.pixel_size import tiff_pixel_size
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.masks.measure import rle_areas
from maskrcnn_plus.results import write_results
from maskrcnn_plus.results.outlines import rle_polygons
from maskrcnn_plus.results.overlay import BASE_COLOURS, class_label, class_shades, reduced_picture
from maskrcnn_plus.results.predictions import Predictions

DOWNLOADS = {
    "labels": "image/png",
    "csv": "text/csv",
    "geojson": "application/geo+json",
    "imagej": "application/zip",
    "coco": "application/json",
    "overlay": "image/png",
}
"""Formats of `write_results` that the page offers, with their types."""

PICTURE_SIDE = 4096
"""Larger images are shown reduced."""

SCORE_DIGITS = 4
"""Of scores on the page, where thresholds are chosen."""

_pixels = threading.Lock()  # whole images are decoded for the page one at a time


def select(found: Predictions, min_score: float = 0.0, min_area: int = 0) -> Predictions:
    """Objects of at least this score, as the page shows it, and this area (pixels), in their order."""
    areas = rle_areas(found.pred_masks_rle)
    kept = (np.round(np.asarray(found.scores, dtype=np.float64), SCORE_DIGITS) >= min_score) & (areas >= min_area)
    return found if kept.all() else found[np.flatnonzero(kept).tolist()]


def to_json(found: Predictions, class_names: list[str]) -> dict[str, Any]:
    """Objects with COCO's run-length codes.

    Returns:
        `height`, `width` and `objects`, each with `id` (from 1), `class`, `category_id`, `score`, `box` (xyxy, pixels),
        `area` (pixels) and `segmentation`.
    """
    height, width = found.image_size
    columns = (
        found.pred_classes.tolist(),
        found.scores.tolist(),
        found.pred_boxes.tensor.tolist(),
        rle_areas(found.pred_masks_rle).tolist(),
        found.pred_masks_rle,
    )
    ids = found.category_ids
    objects = [
        {
            "id": number,
            "class": class_label(class_names, category),
            "category_id": ids[category] if ids else category,
            "score": score,
            "box": box,
            "area": area,
            "segmentation": rle,
        }
        for number, (category, score, box, area, rle) in enumerate(zip(*columns, strict=True), start=1)
    ]
    return {"height": height, "width": width, "objects": objects}


def to_outlines(found: Predictions, class_names: list[str]) -> dict[str, Any]:
    """What the page draws, as small as JSON allows.

    Returns:
        `height`, `width`, `pixel_size` (micrometres or null), `palette` (colours of neighbours), `classes` (name and
        colours of each) and `objects`, each [class, score, area, rings], a ring being [x0, y0, x1, y1, ...] in pixels,
        holes turning the other way.
    """
    height, width = found.image_size
    classes = found.pred_classes.tolist()
    columns = classes, found.scores.tolist(), rle_areas(found.pred_masks_rle).tolist()
    polygons = rle_polygons(found.pred_masks_rle)
    objects = [
        [category, round(score, SCORE_DIGITS), area, [ring.ravel().tolist() for polygon in shape for ring in polygon]]
        for category, score, area, shape in zip(*columns, polygons, strict=True)
    ]
    names = [class_label(class_names, k) for k in range(max([len(class_names) - 1, *classes]) + 1)]
    return {
        "height": height,
        "width": width,
        "pixel_size": found.pixel_size,
        "palette": list(BASE_COLOURS),
        "classes": [{"name": name, "colours": class_shades(k)} for k, name in enumerate(names)],
        "objects": objects,
    }


def draw_picture(image: SourceImage, predictor: Predictor, max_pixels: int) -> bytes:
    """The image to look at, as a JPEG file of at most about `PICTURE_SIDE` pixels a side.

    Raises:
        ValueError, OSError: it cannot be read.
    """
    channels = get_rule(predictor.mapper).count or 3
    with _pixels, pixel_limit(max_pixels), image.open() as windows:
        factor = math.ceil(max(windows.shape[:2]) / PICTURE_SIDE)
        shown = reduced_picture(windows, factor, channels)
    return cv2.imencode(".jpg", shown[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def write_download(
    found: Predictions,
    image: SourceImage,
    file_name: str,
    kind: str,
    predictor: Predictor,
    parent: Path,
    max_pixels: int,
) -> tuple[str, bytes]:
    """The file of a format, as tools/predict.py writes it.

    Args:
        found: the objects that it is to have.
        image: their image.
        file_name: of the image.
        kind: key of `DOWNLOADS`.
        predictor: whose objects they are.
        parent: temporary folder.
        max_pixels: of an image that is decoded for it.

    Returns:
        Name of the file, and its content.

    Raises:
        ValueError, OSError: the image cannot be read, or the file cannot be written.
    """
    pixel_size = tiff_pixel_size(image.path) if kind == "csv" else None
    with _pixels, pixel_limit(max_pixels), tempfile.TemporaryDirectory(dir=parent) as folder, image.open() as windows:
        files = write_results(
            folder,
            image.name,
            found,
            windows,
            formats=[kind],
            class_names=predictor.class_names,
            pixel_size=pixel_size,
            channels=get_rule(predictor.mapper).count or 3,
            file_name=file_name,
            source=None if image.number else image.path,
        )
        path = files[kind]
        return f"{path.stem}_{kind}{path.suffix}", path.read_bytes()
