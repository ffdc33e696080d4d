"""Windows of a whole-slide file (Aperio .svs, Hamamatsu .ndpi, Leica .scn, Philips, Ventana), read by tiffslide.

A slide has its image several times, each level of the pyramid smaller than the one before. Windows are of level 0; what
is asked for smaller comes from the level that is next larger.

Shape shorthand: H, W image height and width, C channels.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import cv2
import numpy as np
import tifffile

from maskrcnn_plus.data.image_windows import SAMPLE_VALUES, ImageWindows
from maskrcnn_plus.data.images import reading
from maskrcnn_plus.data.limits import check_size
from maskrcnn_plus.data.slide_files import is_slide, open_slide
from maskrcnn_plus.data.tiff_files import check_segments

logger = logging.getLogger(__name__)

_SAME_SCALE = 1.01  # a level of 4.0003 times smaller is one of 4 times


class SlideWindows(ImageWindows):
    """Windows of a level of a slide; made by `open_slide_windows`, those of level 0."""

    def __init__(self, name: str, slide: Any) -> None:
        """Take an open `tiffslide.TiffSlide`."""
        self._slide, self._level = slide, 0
        width, height = slide.dimensions
        first = slide.read_region((0, 0), 0, (1, 1), as_array=True, padding=False)  # [1, 1, C]
        self._set(name, (height, width, first.shape[2]), first.dtype, (), (), False)

    def sample(self) -> np.ndarray:
        """The image, or of a larger one about 2**24 values from the pyramid: [H / k, W / k, C] in its depth."""
        return self.reduced(int(np.ceil(np.sqrt(np.prod(self.shape) / SAMPLE_VALUES))))

    def reduced(self, factor: int) -> np.ndarray:
        """The image smaller, as of `ImageWindows.reduced`, by the means that the pyramid has."""
        level = 0 if self._level else self._slide.get_best_level_for_downsample(factor * _SAME_SCALE)
        if level == 0:
            return super().reduced(factor)
        scale = self._slide.level_downsamples[level]
        origin, sides = [], []
        for start, length, limit in zip(
            self._origin, self.shape[1::-1], self._slide.level_dimensions[level], strict=True
        ):
            origin.append(min(int(start / scale), limit - 1))
            sides.append(min(max(round(length / scale), 1), limit - origin[-1]))
        small = copy.copy(self)
        small._level, small._origin, small.shape = level, tuple(origin), (sides[1], sides[0], self.shape[2])
        means = small.reduced(max(int(factor / scale * _SAME_SCALE), 1))
        rows, columns = (-(-side // factor) for side in self.shape[:2])
        resized = cv2.resize(means, (columns, rows), interpolation=cv2.INTER_AREA)
        return resized.reshape(rows, columns, self.shape[2])

    def _read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        if self._level:  # places are given in pixels of level 0, and rounded down to those of the level
            scale = self._slide.level_downsamples[self._level]
            x, y = int(x * scale) + 1, int(y * scale) + 1
        with reading(self.name):
            return self._slide.read_region((x, y), self._level, (width, height), as_array=True, padding=False)


@contextmanager
def open_slide_windows(name: str, local_path: str, tiff: tifffile.TiffFile) -> Iterator[ImageWindows | None]:
    """Open the windows of a slide; None of another file, or, which is said, where tiffslide is not installed.

    Raises:
        ImageReadError: the file is damaged.
    """
    with ExitStack() as stack:
        if not is_slide(tiff):
            yield None
            return
        try:
            slide = stack.enter_context(open_slide(local_path))
        except ImportError:
            logger.warning(
                "%s is a whole-slide file. To read it by parts and from its pyramid: pip install "
                '"maskrcnn_plus[slides]"',
                name,
            )
            yield None
            return
        page = tiff.series[0].keyframe
        check_segments(name, [page], tiff)
        check_size(name, *page.chunks[:2], page.samplesperpixel * page.dtype.itemsize)
        yield SlideWindows(name, slide)
