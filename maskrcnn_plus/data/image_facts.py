"""What the pixels of each image of a data set tell, read once: depth, channels, brightness, and a small picture of it.

Shape shorthand: H, W image height and width, C channels without alpha.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as coco_mask

from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.check_cache import fingerprint, get_cached
from maskrcnn_plus.data.images import ImageReadError, decode, read_label_map, reading
from maskrcnn_plus.masks.measure import rle_union

__all__ = ["KIND", "THUMB_SIDE", "ImageFacts", "mark_kinds", "read_facts", "read_pixels"]

KIND = "kind"
"""Key of a record: a name that images share which look alike, for `CopyPasteMapper`."""

THUMB_SIDE = 32
"""Side of the small picture in pixels."""

_PERCENTILES = (1, 99.8)
_PIXELS = 1 << 20  # that the figures of an image are taken from, at most
_COLOURED = 0.02  # of `ImageFacts.saturation`
_KEPT = 20_000  # images whose facts this process remembers, whatever others they are asked with
_known: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True)
class ImageFacts:
    """Facts of an image.

    Attributes:
        channels: C.
        dtype: type of its values in the file.
        low, high: 1st and 99.8th percentile of its values, over all channels.
        saturation: mean of (largest - smallest channel) / (largest value of the type); 0 unless there are 3 channels.
        brighter: whether its objects are brighter than the rest; None where there is no object or no rest.
        thumb: grey picture of `THUMB_SIDE` x `THUMB_SIDE` pixels whose values reach from 0 to 255, as base64.
    """

    channels: int
    dtype: str
    low: float
    high: float
    saturation: float
    brighter: bool | None
    thumb: str

    def thumbnail(self) -> np.ndarray:
        """The small picture, uint8 [THUMB_SIDE, THUMB_SIDE]."""
        return np.frombuffer(base64.b64decode(self.thumb), dtype=np.uint8).reshape(THUMB_SIDE, THUMB_SIDE)


def read_facts(
    records: Sequence[dict[str, Any]],
    rule: ChannelRule | None = None,
    progress: Callable[[], object] | None = None,
) -> list[ImageFacts | str]:
    """Read the pixels of images, several at a time; what is known is remembered until a file changes.

    Args:
        records: Detectron2 dataset dicts.
        rule: how channels and planes of stacks are chosen; None takes an image as it is.
        progress: called after each image that was read.

    Returns:
        The facts of each image, or what is wrong with it.
    """

    def find() -> dict[str, Any]:
        def look(record: dict[str, Any]) -> dict[str, Any] | str:
            key = _fingerprint([record], rule)
            try:
                found = _known.get(key) or asdict(_read(record, rule))
            except ValueError as error:
                return str(error)
            if key is not None and len(_known) < _KEPT:
                _known[key] = found
            return found

        facts = []
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            for each in pool.map(look, records):
                facts.append(each)
                if progress is not None:
                    progress()
        return {"facts": facts}

    found = get_cached(_fingerprint(records, rule), find)["facts"]
    return [each if isinstance(each, str) else ImageFacts(**each) for each in found]


def mark_kinds(records: Sequence[dict[str, Any]], prefix: str = "") -> None:
    """Mark dataset dicts with their kinds: whether an image is coloured, and its objects brighter than the rest.

    All images are read for it, once until a file changes.

    Args:
        records: to be marked under `KIND`.
        prefix: of the names of the kinds.
    """
    for record, facts in zip(records, read_facts(records), strict=True):
        if isinstance(facts, str):  # the data check will find it
            record[KIND] = f"{prefix}unreadable"
        else:
            colour = "coloured" if facts.saturation > _COLOURED else "grey"
            record[KIND] = f"{prefix}{colour}, {'dark' if facts.brighter else 'bright'} background"


def _fingerprint(records: Sequence[dict[str, Any]], rule: ChannelRule | None) -> str | None:
    files = [record[key] for record in records for key in ("file_name", "label_file_name") if record.get(key)]
    return fingerprint([list(records), str(rule)], files)


def read_pixels(path: str, rule: ChannelRule | None = None) -> np.ndarray:
    """Pixels of an image as they are in the file, [H, W, C], without alpha.

    Raises:
        ImageReadError: it cannot be read.
    """
    with reading(path) as local_path:
        decoded = decode(path, local_path, rule)
    return decoded.pixels[:, :, [k for k in range(decoded.pixels.shape[2]) if k not in decoded.alpha]]


def _read(record: dict[str, Any], rule: ChannelRule | None) -> ImageFacts:
    """Facts of one image.

    Raises:
        ImageReadError: the image or its label image cannot be read.
        ValueError: a mask is malformed.
    """
    path = record["file_name"]
    pixels = read_pixels(path, rule)
    dtype = str(pixels.dtype)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise ImageReadError(f"{path}: some pixel values are NaN or infinite. Replace them before saving the file.")
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    step = int(np.ceil(np.sqrt(pixels.shape[0] * pixels.shape[1] / _PIXELS)))
    sample = pixels[::step, ::step]  # [h, w, C]
    low, high = np.percentile(sample, _PERCENTILES).tolist()
    objects = _foreground(record, pixels.shape[:2])
    return ImageFacts(
        channels=pixels.shape[2],
        dtype=dtype,
        low=low,
        high=high,
        saturation=_saturation(sample),
        brighter=None if objects is None else _is_brighter(sample, objects[::step, ::step]),
        thumb=base64.b64encode(_thumbnail(pixels).tobytes()).decode(),
    )


def _foreground(record: dict[str, Any], size: tuple[int, int]) -> np.ndarray | None:
    """Where the objects of an image are, bool [H, W]; None where it has none or they are of another size."""
    annotations = record.get("annotations", [])
    if "label_file_name" in record:
        inside = read_label_map(record["label_file_name"]) > 0
    elif annotations:
        masks = [each["segmentation"] for each in annotations]
        rles = [mask for mask in masks if isinstance(mask, dict)]
        inside = np.ascontiguousarray(coco_mask.decode(rle_union(rles))) if rles else np.zeros(size, dtype=np.uint8)
        # Filled by OpenCV, as the last row of pixels makes no difference here, and time does.
        polygons = [np.rint(np.reshape(p, (-1, 2))) for mask in masks if isinstance(mask, list) for p in mask]
        for polygon in polygons:
            cv2.fillPoly(inside, [polygon.astype(np.int32)], 1)
        inside = inside.astype(bool)
    else:
        return None
    return inside if inside.shape == size else None


def _is_brighter(pixels: np.ndarray, objects: np.ndarray) -> bool | None:
    """Whether pixels [h, w, C] are brighter within objects, bool [h, w]; None where one of the two is empty."""
    grey = pixels.mean(axis=2, dtype=np.float32)  # [h, w]
    return None if objects.all() or not objects.any() else bool(grey[objects].mean() > grey[~objects].mean())


def _saturation(pixels: np.ndarray) -> float:
    """Mean difference of the channels [h, w, 3], as a part of the range of values."""
    if pixels.shape[2] != 3:
        return 0.0
    largest = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else max(float(pixels.max()), 1e-12)
    spread = pixels.max(axis=2).astype(np.float64) - pixels.min(axis=2)
    return float(spread.mean() / largest)


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Small grey picture of an image [H, W, C], uint8 [THUMB_SIDE, THUMB_SIDE]."""
    grey = pixels.mean(axis=2, dtype=np.float32)  # [H, W]
    small = cv2.resize(grey, (THUMB_SIDE, THUMB_SIDE), interpolation=cv2.INTER_AREA)
    low, high = float(small.min()), float(small.max())
    return np.rint((small - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
