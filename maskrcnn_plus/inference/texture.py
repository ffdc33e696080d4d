"""Where in a large image there is something: tissue on a slide, and not glass, dust, a pen mark or a fibre.

Shape shorthand: [h, w, C] an image, at any scale.
"""

from __future__ import annotations

import cv2
import numpy as np

from maskrcnn_plus.data.pixels import resize_pixels

Window = tuple[int, int, int, int]
"""x, y, width, height in pixels of an image."""

_PARTS, _WORTH = 4, 0.6  # how many at most, and how full against the best
_SIDE = 2048  # of an image that is made small
_MANY = 8  # times the median gradient


def choose_parts(small: np.ndarray, height: int, width: int, side: int) -> list[Window]:
    """The parts of a large image with the fullest texture, 1 to 4 as (x, y, width, height), the best first.

    In the middle of a part is a place of a sixth of its side, by which it is chosen, so that a small piece of tissue
    counts as much as a large one. Nothing of it is in the middle of another part.

    Args:
        small: the image at any scale, [h, w, C].
        height, width: of the image, pixels.
        side: of a part.
    """
    places = _places(small, height, width, side)
    factors = np.array(places.shape) / (height, width)
    size = min(height, side), min(width, side)
    least = _WORTH * places.max()  # in emptier parts, dust would be taken for objects
    parts: list[Window] = []
    while len(parts) < _PARTS and places.max() >= least:
        centre = np.unravel_index(int(places.argmax()), places.shape) / factors
        y, x = (int(min(max(c - s / 2, 0), full - s)) for c, s, full in zip(centre, size, (height, width), strict=True))
        parts.append((x, y, size[1], size[0]))
        (top, left), (bottom, right) = np.floor([y, x] * factors), np.ceil(np.add([y, x], size) * factors)
        places[int(top) : int(bottom), int(left) : int(right)] = -1
    return parts


def find_full(small: np.ndarray, height: int, width: int, side: int) -> np.ndarray:
    """Which pixels of an image lie where texture is about as full as at its best place, bool [h, w].

    Args:
        small, height, width, side: as for `choose_parts`.
    """
    places = _places(small, height, width, side)
    full = (places >= _WORTH * places.max()).astype(np.uint8)
    return cv2.resize(full, small.shape[1::-1], interpolation=cv2.INTER_NEAREST).astype(bool)


def _places(small: np.ndarray, height: int, width: int, side: int) -> np.ndarray:
    """Mean texture about each place, of a square of a sixth of `side` pixels of the image."""
    texture = find_texture(small, _SIDE)
    rows, columns = (
        max(round(side / 6 * count / length), 1) for count, length in zip(texture.shape, (height, width), strict=True)
    )
    return cv2.blur(texture, (columns, rows))


def find_texture(image: np.ndarray, side: int) -> np.ndarray:
    """Where in an image there is something: a function of the gradients of it, made small, float32 [h, w] in 0..1.

    Gradients far above the median, most often that of empty glass or medium, count alike. So tissue, which is full of
    them, has more than a pen mark or a fibre, which have strong edges and nothing else.

    Args:
        image: [H, W, C].
        side: most pixels of the longer side of the result.
    """
    height, width = image.shape[:2]
    factor = min(side / max(height, width), 1.0)
    size = max(round(height * factor), 1), max(round(width * factor), 1)
    known = image.dtype in (np.uint8, np.uint16, np.float32)  # to OpenCV
    small = resize_pixels(image if known else image.astype(np.float32), size)
    grey = small.reshape(*size, -1).mean(axis=2, dtype=np.float32)
    across, down = np.diff(grey, axis=1, append=grey[:, -1:]), np.diff(grey, axis=0, append=grey[-1:])
    gradients = np.abs(across) + np.abs(down)
    some = gradients[gradients > 0]  # some scanners fill what they have not seen with one value
    return gradients / (gradients + _MANY * np.median(some)) if len(some) else gradients


def cut_window(image: np.ndarray, window: Window) -> np.ndarray:
    """A window of an image, contiguous [height, width, C]."""
    x, y, width, height = window
    return np.ascontiguousarray(image[y : y + height, x : x + width])
