"""Label images: value k marks the image's k-th object, 0 is background."""

from __future__ import annotations

import io

import cv2
import numpy as np
import tifffile
from detectron2.structures import Instances

from maskrcnn_plus.masks.label_map import rles_to_label_map


def encode_labels(instances: Instances) -> tuple[str, bytes]:
    """Label image of N objects, in which the highest score has a pixel that several have.

    Args:
        instances: with `scores` and `pred_masks_rle`.

    Returns:
        Suffix and content of the file: 16-bit PNG, or 32-bit TIFF of more than 65535 objects.
    """
    labels = rles_to_label_map(instances.pred_masks_rle, instances.scores.numpy(), *instances.image_size)
    if labels.dtype == np.uint16:
        return ".png", encode_png(labels)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, labels, compression="zlib")
    return ".tif", buffer.getvalue()


def encode_png(image: np.ndarray) -> bytes:
    """PNG file of an array: [H, W, 3] uint8 RGB, or [H, W] uint8 or uint16.

    Raises:
        ValueError: OpenCV cannot encode it.
    """
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    encoded, content = cv2.imencode(".png", image)
    if not encoded:
        raise ValueError(f"OpenCV cannot encode an image {image.shape} of {image.dtype} as PNG")
    return content.tobytes()
