"""Pictures of a data set: images with their annotations, and single annotations that are worth a look.

Shape shorthand: an image of H x W pixels.
"""

from __future__ import annotations

import base64
import math
import random
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as coco_mask
import torch

from maskrcnn_plus.apps.check_data.suspicious import Suspicion
from maskrcnn_plus.data.check_cache import fingerprint, get_cached
from maskrcnn_plus.data.image_facts import read_pixels
from maskrcnn_plus.evaluation.ground_truth import ground_truth_rles
from maskrcnn_plus.masks.measure import reduce_rles, rle_boxes, rle_union
from maskrcnn_plus.masks.rle_masks import RLEMasks
from maskrcnn_plus.results.overlay import display_image, draw_overlay
from maskrcnn_plus.results.page import THUMBNAIL_SIDE, thumbnail
from maskrcnn_plus.results.predictions import Predictions

_CROP_SIDE = 360  # pixels of a picture of one annotation
_LEAST_WINDOW = 48  # pixels of the image around it
_OBJECT, _OTHERS = (255, 89, 100), (24, 197, 244)  # RGB


def choose_samples(records: Sequence[dict[str, Any]], count: int) -> list[int]:
    """Some images drawn by chance, always the same, and the one with the most objects; ascending indices."""
    with_objects = [index for index, record in enumerate(records) if record["annotations"]]
    if not with_objects:
        return []
    densest = max(with_objects, key=lambda index: len(records[index]["annotations"]))
    chosen = random.Random(0).sample(with_objects, min(count, len(with_objects)))
    return sorted({densest, *chosen[: count - 1]})


def draw_samples(records: Sequence[dict[str, Any]], class_names: Sequence[str]) -> list[bytes]:
    """JPEG files of images with their annotations; what was drawn is remembered until a file changes."""
    return _remembered("samples", records, list(class_names), lambda: [_draw_sample(r, class_names) for r in records])


def draw_suspicious(records: Sequence[dict[str, Any]], found: Sequence[Suspicion]) -> list[bytes]:
    """JPEG files of annotations with what is around them, as of `draw_samples`; images are numbered in `records`."""
    chosen = [records[each.image] for each in found]
    numbers = [each.number for each in found]
    return _remembered(
        "suspicious", chosen, numbers, lambda: [_draw_one(r, k) for r, k in zip(chosen, numbers, strict=True)]
    )


def _remembered(what: str, records: Sequence[dict[str, Any]], values: list, draw: Any) -> list[bytes]:
    files = [record[key] for record in records for key in ("file_name", "label_file_name") if record.get(key)]
    key = fingerprint([what, values, list(records)], files)
    found = get_cached(key, lambda: {"pictures": [base64.b64encode(each).decode() for each in draw()]})
    return [base64.b64decode(each) for each in found["pictures"]]


def _read(record: dict[str, Any]) -> np.ndarray:
    """The image of a record to look at, uint8 RGB [H, W, 3]."""
    pixels = read_pixels(record["file_name"])
    # As float an image of 8 bits is stretched too, without which many of fluorescence are black.
    return display_image(pixels.astype(np.float32), pixels.shape[2], record["file_name"])


def _draw_sample(record: dict[str, Any], class_names: Sequence[str]) -> bytes:
    """An image with all its annotations, reduced where it is large."""
    image, rles = _read(record), ground_truth_rles(record)
    factor = max(math.ceil(max(image.shape[:2]) / (2 * THUMBNAIL_SIDE)), 1)
    size = tuple(-(-side // factor) for side in image.shape[:2])
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA) if factor > 1 else image
    masks = RLEMasks(reduce_rles(rles, factor), size)
    classes = torch.tensor([each["category_id"] for each in record["annotations"]], dtype=torch.int64)
    instances = Predictions(size, class_names=list(class_names), pred_masks_rle=masks, pred_classes=classes)
    return thumbnail(draw_overlay(image, instances, class_names))


def _draw_one(record: dict[str, Any], number: int) -> bytes:
    """One annotation, outlined, with the others around it outlined in another colour."""
    image, rles = _read(record), ground_truth_rles(record)
    x0, y0, x1, y1 = rle_boxes([rles[number]])[0]
    half = max(1.25 * max(x1 - x0, y1 - y0), _LEAST_WINDOW / 2)
    left, top = (max(int(middle - half), 0) for middle in ((x0 + x1) / 2, (y0 + y1) / 2))
    window = slice(top, math.ceil((y0 + y1) / 2 + half)), slice(left, math.ceil((x0 + x1) / 2 + half))
    crop = image[window]
    scale = _CROP_SIDE / max(crop.shape[:2])
    size = tuple(max(round(scale * side), 1) for side in crop.shape[1::-1])  # width, height
    crop = cv2.resize(crop, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    others = [rle for k, rle in enumerate(rles) if k != number]
    for masks, colour, thickness in ((others, _OTHERS, 1), ([rles[number]], _OBJECT, 2)):
        if masks:
            mask = coco_mask.decode(rle_union(masks))[window]
            mask = cv2.resize(np.ascontiguousarray(mask), size, interpolation=cv2.INTER_NEAREST)
            outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(crop, outlines, -1, colour, thickness)
    return thumbnail(crop)
