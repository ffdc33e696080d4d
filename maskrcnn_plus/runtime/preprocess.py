"""An image -> the input of an exported graph, as the `InstanceMapper` or `DatasetMapper` of its config made it.

Shape shorthand: H, W image height and width, C channels; [h, w] the image as the network sees it.
"""

from __future__ import annotations

import os

import cv2
import numpy as np
from PIL import Image

from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.images import read_image
from maskrcnn_plus.data.pixels import prepare_image, resize_pixels
from maskrcnn_plus.model_folder import Preprocessing


def prepare_input(image: str | os.PathLike | np.ndarray, rule: Preprocessing) -> tuple[np.ndarray, tuple[int, int]]:
    """Read, choose channels, map to 0..255 and resize.

    Args:
        image: a path, or an array [H, W] or [H, W, C] in RGB order.
        rule: of the model.

    Returns:
        float32 [1, C, h, w] in 0..255, and (H, W).

    Raises:
        ImageReadError: the image cannot be used; the message names it.
    """
    channels = ChannelRule(rule.channels, rule.select, rule.projection)
    if isinstance(image, np.ndarray):
        pixels = prepare_image(image, channels, rule.percentiles)
    else:
        pixels = read_image(os.fspath(image), channels, rule.percentiles)
    if rule.eight_bit and pixels.dtype != np.uint8:
        pixels = np.rint(pixels).astype(np.uint8)
    if rule.color_order == "BGR" and pixels.shape[2] == 3 and rule.select is None:
        pixels = np.ascontiguousarray(pixels[:, :, ::-1])
    height, width = pixels.shape[:2]
    resized = resize(pixels, rule.resize.rule, rule.resize.output_size(height, width))
    return np.ascontiguousarray(resized.transpose(2, 0, 1)[None], dtype=np.float32), (height, width)


def resize(pixels: np.ndarray, rule: str, size: tuple[int, int]) -> np.ndarray:
    """Resize an image by the arithmetic of one of the rules of `Resize`.

    Args:
        pixels: [H, W, C] uint8 or float32.
        rule: its name.
        size: (h, w).

    Returns:
        [h, w, C], of "torchvision" float32.
    """
    height, width, channels = pixels.shape
    if size == (height, width):
        return pixels
    rows, columns = size
    if rule == "detectron2" and pixels.dtype == np.uint8:  # PIL's, which averages where it shrinks
        image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
        return np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR)).reshape(rows, columns, channels)
    if rule == "torchvision":
        pixels = pixels.astype(np.float32)
    if rule == "scale":
        return resize_pixels(pixels, size)
    resized = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return resized.reshape(rows, columns, channels)  # OpenCV drops a single channel
