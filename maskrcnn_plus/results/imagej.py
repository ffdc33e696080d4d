"""ImageJ's RoiSet.zip of predictions: outlines along the edges of the pixels, of several rings where needed.

The class and the score are properties of the ROI.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from roifile import ROI_TYPE, ImagejRoi

from maskrcnn_plus.results.outlines import rle_polygons
from maskrcnn_plus.results.overlay import class_label

if TYPE_CHECKING:
    from detectron2.structures import Instances

_LARGEST = 60_535  # coordinate of a ROI of integers
_NOT_IN_NAMES = re.compile(r"[^\w .-]")
_DATE = (1980, 1, 1, 0, 0, 0)  # equal predictions give equal files


def roi_set(instances: Instances, image_name: str, class_names: Sequence[str] | None = None) -> bytes:
    """A .zip of ROIs, which ImageJ's ROI Manager opens.

    Args:
        instances: with `scores`, `pred_classes` and `pred_masks_rle`; empty masks are left out.
        image_name: without effect, as ImageJ finds images by the names of files.
        class_names: name of each class.
    """
    objects = zip(
        instances.pred_classes.tolist(),
        instances.scores.tolist(),
        rle_polygons(instances.pred_masks_rle),
        strict=True,
    )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (category, score, polygons) in enumerate(objects, start=1):
            if polygons:
                label = " ".join(class_label(class_names, category).split())
                name = f"{number:04d}-{_NOT_IN_NAMES.sub('_', label)[:60]}"
                roi = make_roi([ring for polygon in polygons for ring in polygon])
                roi.name, roi.props = name, f"class: {label}\nscore: {score:.4f}\n"
                entry = zipfile.ZipInfo(f"{name}.roi", _DATE)
                archive.writestr(entry, roi.tobytes(), zipfile.ZIP_DEFLATED)
    return content.getvalue()


def make_roi(rings: Sequence[np.ndarray]) -> ImagejRoi:
    """A ROI of closed rings int [K, 2], pixels; even-odd, so that a ring within another is a hole."""
    corners = np.concatenate(rings)
    if len(rings) == 1 and corners.max() <= _LARGEST:
        roi = ImagejRoi.frompoints(rings[0])
        roi.roitype = ROI_TYPE.TRACED
        return roi
    path: list[float] = []  # 0 moves to a point, 1 draws a line, 4 closes the ring
    for ring in rings:
        path += [0, *ring[0].tolist()]
        path += [value for point in ring[1:].tolist() for value in (1, *point)]
        path.append(4)
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    box = {"left": left, "top": top, "right": right, "bottom": bottom}
    return ImagejRoi(
        roitype=ROI_TYPE.RECT,
        multi_coordinates=np.array(path, dtype=np.float32),
        shape_roi_size=len(path),
        **{side: min(value, _LARGEST) for side, value in box.items()},
    )
