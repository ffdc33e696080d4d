"""Tiles of an image without anything in them, which need no prediction: glass, empty medium.

The rule: on an overview of the image, on which a tile has a side of 64 pixels, each the mean of its pixels, a tile is
background where no channel varies by more than a twentieth of the range of the overview (0.1 to 99.9 percentile of all
its values). It holds for bright and dark backgrounds, and errs on the side of predicting: the edge of a piece of
tissue, dust or a single cell make a tile worth it, and in an image without background all are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskrcnn_plus.data.image_windows import ImageWindows

TILE_SIDE = 64
"""Of a tile on the overview, pixels."""

CONTRAST = 0.05
"""Of the range of the overview, up to which a tile may vary."""

_SAMPLE_VALUES = 2**24


def find_background(windows: ImageWindows, corners: Sequence[tuple[int, int]], side: int) -> list[bool]:
    """Which tiles of an image are background.

    Args:
        windows: of the image.
        corners: (y, x) of the tiles' upper left pixels.
        side: of the tiles, pixels; less at the right and lower border.

    Returns:
        Whether each is.
    """
    factor = max(side // TILE_SIDE, 1)
    overview = windows.reduced(factor)
    step = int(np.ceil(np.sqrt(overview.size / _SAMPLE_VALUES)))
    low, high = np.percentile(overview[::step, ::step].astype(np.float32), [0.1, 99.9])
    found = []
    for y, x in corners:
        part = overview[y // factor : -(-(y + side) // factor), x // factor : -(-(x + side) // factor)]
        spread = part.max(axis=(0, 1)).astype(np.float64) - part.min(axis=(0, 1))  # [C]
        found.append(bool((spread <= CONTRAST * (high - low)).all()))
    return found
