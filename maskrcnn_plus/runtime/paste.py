"""Mask probabilities pasted into their boxes, in NumPy: the rules of `paste_masks_rle` without PyTorch.

Shorthand: N objects, S x S mask of an object in its box, h x w window of the image.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from maskrcnn_plus.rle import encode_windows


def paste_masks(
    mask_probs: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float = 0.5, rule: str = "detectron2"
) -> list[dict[str, Any]]:
    """Paste and encode masks.

    Args:
        mask_probs: float32 [N, S, S].
        boxes: float32 [N, 4] xyxy in pixels, within the image.
        height, width: of the image in pixels.
        threshold: a pixel belongs to the object from this probability on.
        rule: "detectron2" or "torchvision".

    Returns:
        N RLEs of size [height, width].
    """
    window = _sampled_window if rule == "detectron2" else _resized_window
    pairs = zip(mask_probs, boxes.astype(np.float32), strict=True)
    return encode_windows((window(probs, box, height, width, threshold) for probs, box in pairs), height, width)


def _sampled_window(
    probs: np.ndarray, box: np.ndarray, height: int, width: int, threshold: float
) -> tuple[np.ndarray, int, int] | None:
    """The mask sampled at the centres of the pixels of its box."""
    left, top = np.maximum(np.floor(box[:2]).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(box[2:]).astype(int) + 1, (width, height))
    if left >= right or top >= bottom:
        return None
    rows = _weights(top, bottom, box[1], box[3], probs.shape[0])  # [h, S]
    columns = _weights(left, right, box[0], box[2], probs.shape[1])  # [w, S]
    return rows @ probs @ columns.T >= threshold, int(left), int(top)


def _weights(begin: int, end: int, low: np.float32, high: np.float32, cells: int) -> np.ndarray:
    """Of linear interpolation between the centres of cells, 0 beyond them: [end - begin, cells]."""
    places = (np.arange(begin, end, dtype=np.float32) + 0.5 - low) / (high - low) * cells - 0.5
    return np.clip(1 - np.abs(places[:, None] - np.arange(cells, dtype=np.float32)), 0, None).astype(np.float32)


def _resized_window(
    probs: np.ndarray, box: np.ndarray, height: int, width: int, threshold: float
) -> tuple[np.ndarray, int, int] | None:
    """The mask, with a border of 0, resized to the whole pixels of its box, which grows as the mask does."""
    size = probs.shape[0]
    padded, scale = np.pad(probs, 1), np.float32((size + 2) / size)
    centre, half = (box[2:] + box[:2]) * np.float32(0.5), (box[2:] - box[:2]) * np.float32(0.5) * scale
    x0, y0, x1, y1 = np.concatenate([centre - half, centre + half]).astype(np.int64).tolist()
    left, right, top, bottom = max(x0, 0), min(x1 + 1, width), max(y0, 0), min(y1 + 1, height)
    if left >= right or top >= bottom:
        return None
    resized = cv2.resize(padded, (max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1)), interpolation=cv2.INTER_LINEAR)
    return resized[top - y0 : bottom - y0, left - x0 : right - x0] >= threshold, left, top
