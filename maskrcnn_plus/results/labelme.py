"""LabelMe's JSON of predictions beside the image, an object a shape of type "mask": a PNG of its box in base64."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from maskrcnn_plus.results.labels import encode_png
from maskrcnn_plus.results.outlines import rle_crops
from maskrcnn_plus.results.overlay import class_label

if TYPE_CHECKING:
    from detectron2.structures import Instances

_VERSION = "5.4.1"  # of LabelMe; older than 5.3 it has no masks


def labelme_json(instances: Instances, image_name: str, class_names: Sequence[str] | None = None) -> bytes:
    """The file of one image.

    Args:
        instances: with `scores`, `pred_classes` and `pred_masks_rle`; empty masks are left out.
        image_name: of the image, which lies beside the file.
        class_names: name of each class.
    """
    objects = zip(
        instances.pred_classes.tolist(),
        instances.scores.tolist(),
        rle_crops(instances.pred_masks_rle),
        strict=True,
    )
    shapes = [
        {
            "label": class_label(class_names, category),
            "points": [[x, y], [x + mask.shape[1] - 1, y + mask.shape[0] - 1]],  # the last pixel is within
            "group_id": None,
            "description": f"score {score:.3f}",
            "shape_type": "mask",
            "flags": {},
            "mask": base64.b64encode(encode_png(mask.astype(np.uint8))).decode(),
        }
        for category, score, (x, y, mask) in objects
        if mask.size
    ]
    height, width = map(int, instances.image_size)
    content = {
        "version": _VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_name.rpartition("/")[2],
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    return json.dumps(content).encode()
