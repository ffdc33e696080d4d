"""Windows of a TIFF, read by its tiles or strips, or mapped into memory where it is neither compressed nor split.

Shape shorthand: H, W image height and width, C channels; [h, w] a window.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import tifffile

from maskrcnn_plus.data import image_windows
from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.image_windows import ImageWindows
from maskrcnn_plus.data.images import reading
from maskrcnn_plus.data.limits import check_size
from maskrcnn_plus.data.read_error import ImageReadError
from maskrcnn_plus.data.tiff_files import (
    arrange_axes,
    channel_names,
    check_segments,
    get_page_alpha,
    is_grey_or_rgb,
    is_inverted,
    lacks_codec,
    single_series,
    stacked_axes,
    tiff_orientation,
)


class TiffWindows(ImageWindows):
    """Windows of a TIFF image that is one page, or a page a channel; made by `get_tiff_windows`."""

    def __init__(
        self, name: str, pages: list[tifffile.TiffPage], alpha: Sequence[int], names: Sequence[str], inverted: bool
    ) -> None:
        self._pages, self._key = pages, pages[0].keyframe
        planes, _, height, width, samples = self._key.shaped  # (separate samples, depth, height, width, samples)
        self._page_channels = planes * samples
        self._all_channels = len(pages) * self._page_channels
        self._set(name, (height, width, self._all_channels), self._key.dtype, alpha, names, inverted)
        if self._key.is_tiled:
            self._grain = (self._key.tilelength, self._key.tilewidth)
        else:
            self._grain = (min(self._key.rowsperstrip, height), width)
        check_size(name, *self._grain, samples * self.dtype.itemsize)
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._cached_bytes = 0
        self._segment(0, 0)  # raises where tifffile cannot decode it

    def _read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Put a window together from the segments that it touches."""
        grain_rows, grain_columns = self._grain
        sides = self._key.shaped[2:4]  # of the page: a crop has another shape
        down, across = (-(-side // grain) for side, grain in zip(sides, self._grain, strict=True))
        window = np.zeros((height, width, self._all_channels), dtype=self.dtype)
        with reading(self.name):
            for number in range(len(self._pages)):
                for plane in range(self._key.shaped[0]):
                    first = number * self._page_channels + plane
                    for row in range(y // grain_rows, (y + height - 1) // grain_rows + 1):
                        for column in range(x // grain_columns, (x + width - 1) // grain_columns + 1):
                            segment = self._segment(number, (plane * down + row) * across + column)
                            left, top = column * grain_columns - x, row * grain_rows - y  # in the window
                            part = segment[max(-top, 0) : height - top, max(-left, 0) : width - left]
                            rows = slice(max(top, 0), max(top, 0) + part.shape[0])
                            columns = slice(max(left, 0), max(left, 0) + part.shape[1])
                            window[rows, columns, first : first + part.shape[2]] = part
        return window

    def _segment(self, number: int, index: int) -> np.ndarray:
        """Tile or strip `index` of a page as [rows, columns, samples], from the cache or the file."""
        if (number, index) in self._cache:
            self._cache.move_to_end((number, index))
            return self._cache[number, index]
        page = self._pages[number]
        file, count = page.parent.filehandle, page.databytecounts[index]
        file.seek(page.dataoffsets[index])
        data = file.read(count) if count else None
        if data is not None and len(data) < count:
            raise ImageReadError(f"{self.name}: the file is truncated. Copy it again or remove it.")
        decoded, _, shape = self._key.decode(data, index, jpegtables=page.jpegtables)
        # A segment that was never written (a sparse file) holds the value for "no data".
        pixels = np.full(shape, self._key.nodata, dtype=self.dtype) if decoded is None else decoded
        segment = self._cache[number, index] = pixels[0]  # [1, rows, columns, samples] -> [rows, columns, samples]
        self._cached_bytes += segment.nbytes
        while self._cached_bytes > image_windows.CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return segment


def get_tiff_windows(
    name: str, tiff: tifffile.TiffFile, page: int | Sequence[int] | None, rule: ChannelRule
) -> ImageWindows | None:
    """Windows of a TIFF image; None where it must be decoded as a whole (rotated, projected, palette, JPEG, ...)."""
    names: tuple[str, ...] = ()
    if page is None:
        series, first = single_series(name, tiff, rule), tiff.pages[0]
        if stacked_axes(series, rule)[1]:
            return None
        pages, axes, shape, offset = list(series.pages), series.axes, series.shape, series.dataoffset
        names = channel_names(tiff, 0)
    else:
        numbers = [page] if isinstance(page, int) else list(page)
        for number in numbers:
            if not 0 <= number < len(tiff.pages):
                raise ImageReadError(f"{name}: there is no page {number}, the TIFF has {len(tiff.pages)} (from 0).")
        pages = [tiff.pages[number].aspage() for number in numbers]
        first = pages[0]
        axes, shape = first.axes, first.shape
        offset = first.dataoffsets[0] if first.is_contiguous and len(pages) == 1 else None
    if 0 in shape:
        raise ImageReadError(f"{name}: the image has zero size {shape}. Remove or replace the file.")
    if not is_grey_or_rgb(first) or tiff_orientation(tiff) != 1 or first.dtype is None:
        return _refuse_page(name, page)
    alpha = get_page_alpha(first) if len(pages) == 1 else ()
    inverted = is_inverted(first)
    if offset is not None and first.bitspersample == 8 * first.dtype.itemsize:
        stored = first.dtype.newbyteorder(tiff.byteorder)
        pixels = np.memmap(tiff.filehandle.path, dtype=stored, mode="r", offset=offset, shape=shape)
        pixels = arrange_axes(name, pixels, axes, rule)
        return ImageWindows(name, pixels, alpha, names=names, inverted=inverted)
    check_segments(name, pages, tiff)
    try:
        return TiffWindows(name, pages, alpha, names, inverted)
    except ValueError as error:
        if not lacks_codec(error):
            raise
        return _refuse_page(name, page)


def _refuse_page(name: str, page: int | Sequence[int] | None) -> None:
    """Pillow, which reads the rest, is asked for the first page only."""
    if page is not None:
        raise ImageReadError(
            f"{name}: page {page} has a compression or colours that cannot be read from a stack here. Install the "
            "Python package imagecodecs, or save the page as a file of its own without compression."
        )
