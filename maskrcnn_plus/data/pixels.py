"""Pixels of an image in memory: channels and grey levels as the networks take them.

Shape shorthand: H, W image height and width, C channels (RGB order for colour).
"""

import math

import cv2
import numpy as np

from maskrcnn_plus.data.channels import ChannelRule, as_rule, get_array_alpha
from maskrcnn_plus.data.pillow_files import Decoded
from maskrcnn_plus.data.read_error import ImageReadError

__all__ = [
    "ImageReadError",
    "check_percentiles",
    "intensity_range",
    "match_channels",
    "prepare_image",
    "rescale",
    "resize_pixels",
]

_AREA_CHANNELS = 4  # that OpenCV averages at once
_LUMA_601 = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def prepare_image(
    pixels: np.ndarray,
    channels: int | ChannelRule | None = 3,
    percentiles: tuple[float, float] | None = None,
    *,
    name: str = "the image",
    limits: tuple[float, float] | None = None,
    picked: bool = False,
) -> np.ndarray:
    """Do with an image in memory what `read_image` does with that of a file.

    Args:
        pixels: [H, W] or [H, W, C], RGB order, integers or floats of any depth. No array says which channel is alpha:
            the fourth of four channels of uint8 is taken for it where fewer are wanted, and no other.
        channels, percentiles: as for `read_image`.
        name: of the image in errors.
        limits: (low, high) grey values that are mapped to 0..255 in place of the image's own percentiles, such as
            those of the whole of which this is a part. Without effect where `percentiles` is None.
        picked: the channels are those that the rule picks already; only grey and RGB are brought to each other.

    Returns:
        [H, W, C]: uint8 or float32, as `read_image`.

    Raises:
        ImageReadError: no pixels, another number of dimensions, or channels or values that do not fit.
        ValueError: `channels` or `percentiles` is out of range, or `limits` do not rise.
    """
    rule = as_rule(channels)
    check_percentiles(percentiles)
    if limits is not None and not -math.inf < limits[0] <= limits[1] < math.inf:
        raise ValueError(f"limits={limits!r}: two finite numbers low <= high are needed.")
    if pixels.ndim not in (2, 3) or pixels.size == 0:
        raise ImageReadError(
            f"{name} has the shape {pixels.shape}: an image [H, W] or [H, W, C] with at least one pixel is needed."
        )
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels  # [H, W, C]
    decoded = Decoded(pixels, () if picked else get_array_alpha(name, pixels, rule))
    return convert_pixels(name, decoded, ChannelRule(None) if picked else rule, rule.count, percentiles, limits)


def convert_pixels(
    name: str,
    decoded: Decoded,
    rule: ChannelRule,
    count: int | None,
    percentiles: tuple[float, float] | None,
    limits: tuple[float, float] | None = None,
) -> np.ndarray:
    """Pick the channels of an image, bring grey and RGB to each other, and map the values to 0..255.

    Args:
        name: of the image in errors.
        decoded: the image in its own depth.
        rule: picks the channels.
        count: C of the result; None keeps those that are picked.
        percentiles, limits: see `prepare_image`.

    Returns:
        [H, W, C], uint8 or float32.
    """
    pixels = decoded.pixels
    indices = rule.indices(name, pixels.shape[2], decoded.alpha, decoded.names)
    if indices != list(range(pixels.shape[2])):
        pixels = pixels[:, :, indices]
    return np.ascontiguousarray(rescale(name, match_channels(name, pixels, count), percentiles, limits))


def intensity_range(pixels: np.ndarray, percentiles: tuple[float, float]) -> tuple[float, float]:
    """Grey values that `read_image` maps to 0 and 255 by `percentiles`.

    Args:
        pixels: of any shape, finite.
        percentiles: as for `read_image`.

    Returns:
        (low, high); equal only where all pixels are equal.
    """
    low, high = np.percentile(pixels, percentiles)
    if low == high:
        low, high = pixels.min(), pixels.max()
    return float(low), float(high)


def match_channels(name: str, pixels: np.ndarray, count: int | None) -> np.ndarray:
    """Bring grey [H, W, 1] to RGB or RGB to grey where `count` asks for it; other numbers of channels must agree."""
    if pixels.shape[2] == count or count is None:
        return pixels
    if count == 3 and pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)  # [H, W, 3]
    if count == 1 and pixels.shape[2] == 3:
        grey = pixels.astype(np.float32) @ _LUMA_601  # [H, W]
        if pixels.dtype.kind in "iu":
            grey = np.rint(grey).astype(pixels.dtype)
        return grey[:, :, None]  # [H, W, 1]
    raise ImageReadError(f"{name}: the image has {pixels.shape[2]} channels where {count} are wanted.")


def check_percentiles(percentiles: tuple[float, float] | None) -> None:
    """Refuse percentiles but 0 <= low < high <= 100."""
    if percentiles is None:
        return
    try:
        low, high = (float(value) for value in percentiles)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 <= low < high <= 100:
        raise ValueError(
            f"percentiles={percentiles!r}: two numbers 0 <= low < high <= 100 are needed, such as (1, 99.8)."
        )


def rescale(
    path: str,
    pixels: np.ndarray,
    percentiles: tuple[float, float] | None,
    limits: tuple[float, float] | None = None,
) -> np.ndarray:
    """Map [H, W, C] of any depth to 0..255."""
    if pixels.dtype.kind not in "buif":
        raise ImageReadError(f"{path}: pixels of type {pixels.dtype} are not supported. Save real numbers.")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise ImageReadError(f"{path}: some pixel values are NaN or infinite. Replace them before saving the file.")
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    if percentiles is not None:
        low, high = limits or intensity_range(pixels, percentiles)
        if low == high:
            return np.zeros(pixels.shape, dtype=np.float32)
        return np.clip((pixels.astype(np.float64) - low) * (255.0 / (high - low)), 0, 255).astype(np.float32)
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        return pixels.astype(np.float32) / np.float32(257)
    if pixels.dtype.kind == "f" and pixels.min() >= 0 and pixels.max() <= 1:
        return pixels.astype(np.float32) * np.float32(255)
    raise ImageReadError(
        f"{path}: the value range of {pixels.dtype} pixels ({pixels.min()}..{pixels.max()}) is unknown. Set "
        "percentiles (dataset.percentiles), such as (1, 99.8), or save the image as 8-bit, 16-bit or as float in 0..1."
    )


def resize_pixels(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image: area average where neither side grows, else linear interpolation.

    Args:
        image: [H, W] or [H, W, C], of any number of channels.
        size: (h, w).

    Returns:
        [h, w] or [h, w, C] of the same type.
    """
    (height, width), (rows, columns) = image.shape[:2], size
    if (rows, columns) == (height, width):
        return image
    area = rows <= height and columns <= width
    channels = image.shape[2] if image.ndim == 3 else 1
    if area and channels > _AREA_CHANNELS:
        parts = np.split(image, range(_AREA_CHANNELS, channels, _AREA_CHANNELS), axis=2)
        return np.concatenate([resize_pixels(part, size) for part in parts], axis=2)
    method = cv2.INTER_AREA if area else cv2.INTER_LINEAR
    resized = cv2.resize(np.ascontiguousarray(image), (columns, rows), interpolation=method)
    return resized.reshape(rows, columns, *image.shape[2:])  # OpenCV drops a single channel
