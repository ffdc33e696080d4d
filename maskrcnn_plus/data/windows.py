"""Windows of an image, read from its file as they are asked for, so that a huge image is never in memory.

A TIFF is read by its tiles or strips (through tifffile's decoder of single segments), or mapped into memory where it is
neither compressed nor split. Other formats, and TIFFs that tifffile cannot decode by segments, cannot be entered in the
middle: they are decoded as a whole, in their own depth.

Shape shorthand: H, W image height and width, C channels (RGB order for colour); [h, w] a window.
"""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import tifffile

from maskrcnn_plus.data.channels import ChannelRule, alpha_of_array
from maskrcnn_plus.data.images import decode, reading
from maskrcnn_plus.data.limits import check_size
from maskrcnn_plus.data.read_error import ImageReadError
from maskrcnn_plus.data.tiff_files import (
    MINISBLACK,
    MINISWHITE,
    RGB,
    alpha_of_page,
    channel_names,
    check_segments,
    image_of_axes,
    is_tiff,
    open_tiff,
    single_series,
    stacked_axes,
    tiff_orientation,
)

CACHE_BYTES = 256 * 2**20
"""Decoded segments that are kept: the strips below a row of windows are needed by each of its windows."""

SAMPLE_VALUES = 2**24
"""Size of the subsample that stands for the pixels of a larger image, all channels together."""


class ImageWindows:
    """Windows of an array.

    Attributes:
        name: of the image in errors, its path for a file.
        shape: (H, W, C).
        dtype: of the pixels, native byte order.
        alpha: indices of the channels that are said to be alpha; None for an array, which says nothing.
        channel_names: a name a channel, empty where the file has none.
        picked: whether the channels are those that a rule picked.
    """

    def __init__(
        self,
        name: str,
        pixels: np.ndarray,
        alpha: Sequence[int] | None = (),
        *,
        names: Sequence[str] = (),
        inverted: bool = False,
    ) -> None:
        """Take [H, W, C], `inverted` where 0 is white.

        Raises:
            ImageReadError: no pixels or another number of dimensions.
        """
        if pixels.ndim != 3 or pixels.size == 0:
            raise ImageReadError(
                f"{name} has the shape {pixels.shape}: an image [H, W] or [H, W, C] with at least one pixel is needed."
            )
        self._set(name, pixels.shape, pixels.dtype, alpha, names, inverted)
        self._pixels = pixels

    def _set(self, name, shape, dtype, alpha, names, inverted) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype.newbyteorder("=")
        self.alpha, self.channel_names, self._inverted = alpha, tuple(names), inverted
        self.picked, self._picks = False, None

    @property
    def has_alpha(self) -> bool:
        """Whether one of the channels is said to be alpha."""
        return bool(self.alpha)

    def alpha_for(self, rule: ChannelRule) -> Sequence[int]:
        """Indices of the channels that are alpha where `rule` picks."""
        return alpha_of_array(self.name, self._pixels, rule) if self.alpha is None else self.alpha

    def pick(self, rule: ChannelRule) -> ImageWindows:
        """Windows of the channels that go into the network by `rule`: 1, 3 or `rule.count` of them.

        Windows of picked channels stay as they are.

        Raises:
            ImageReadError: the channels cannot be chosen.
        """
        if self.picked:
            return self
        indices = rule.indices(self.name, self.shape[2], self.alpha_for(rule), self.channel_names)
        found = copy.copy(self)
        found.picked, found.alpha, found.channel_names = True, (), ()
        if indices != list(range(self.shape[2])):
            found._picks, found.shape = indices, (*self.shape[:2], len(indices))
        return found

    def part(self, x: int, y: int, width: int, height: int) -> ImageWindows:
        """A window in memory, as an image that has its channels; see `read`."""
        found = ImageWindows(self.name, self.read(x, y, width, height), self.alpha, names=self.channel_names)
        found.picked = self.picked
        return found

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Read a window.

        Args:
            x, y: its upper left corner, pixels.
            width, height: its size, pixels.

        Returns:
            [height, width, C] in the depth of the image, a new array.

        Raises:
            ValueError: the window is not within the image.
            ImageReadError: the file is damaged there.
        """
        rows, columns = self.shape[:2]
        if min(x, y) < 0 or min(width, height) < 1 or x + width > columns or y + height > rows:
            raise ValueError(f"{self.name}: a window {width} x {height} at {x}, {y} is not within {columns} x {rows}")
        pixels = self._read(x, y, width, height)
        pixels = (pixels if self._picks is None else pixels[:, :, self._picks]).astype(self.dtype)
        return ~pixels if self._inverted else pixels

    def sample(self) -> np.ndarray:
        """Every k-th pixel of every k-th row: all of an image of up to 2**24 values, about as many of a larger one.

        Returns:
            [H / k, W / k, C] in the depth of the image.
        """
        step = int(np.ceil(np.sqrt(np.prod(self.shape) / SAMPLE_VALUES)))
        return np.concatenate([np.ascontiguousarray(band[::step, ::step]) for band in self._bands(step)])

    def reduced(self, factor: int) -> np.ndarray:
        """The image smaller: the mean of every `factor` x `factor` pixels, of fewer at the right and lower border.

        Returns:
            [H / factor, W / factor, C], rounded up, in the depth of the image; the image itself for a factor of 1.
        """
        if factor == 1:
            return self.read(0, 0, self.shape[1], self.shape[0])
        bands = []
        for band in self._bands(factor):
            counts = np.outer(*(_block_sums(np.ones(side), factor) for side in band.shape[:2]))
            sums = _block_sums(_block_sums(band, factor).swapaxes(0, 1), factor).swapaxes(0, 1)
            means = sums / counts[:, :, None]
            bands.append((means if band.dtype.kind == "f" else np.rint(means)).astype(band.dtype))
        return np.concatenate(bands)

    def _bands(self, multiple: int) -> Iterator[np.ndarray]:
        """The image in bands of rows, [rows, W, C], whose number is a multiple but for the last."""
        height, width, channels = self.shape
        rows = max(CACHE_BYTES // 4 // (width * channels * self.dtype.itemsize) // multiple, 1) * multiple
        for y in range(0, height, rows):
            yield self.read(0, y, width, min(rows, height - y))

    def _read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        return self._pixels[y : y + height, x : x + width]


def _block_sums(values: np.ndarray, factor: int) -> np.ndarray:
    """Sums of every `factor` rows, and of the rest: [rows, ...] -> float64 [rows / factor, ...], rounded up."""
    sums = values[::factor].astype(np.float64)
    for offset in range(1, min(factor, len(values))):
        part = values[offset::factor]
        sums[: len(part)] += part
    return sums


class TiffWindows(ImageWindows):
    """Windows of a TIFF image that is one page, or a page a channel; made by `open_windows`."""

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
        down, across = (-(-side // grain) for side, grain in zip(self.shape[:2], self._grain, strict=True))
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
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return segment


@contextmanager
def open_windows(
    source: str | os.PathLike | np.ndarray, page: int | Sequence[int] | None = None, rule: ChannelRule | None = None
) -> Iterator[ImageWindows]:
    """Open an image for reading by windows; a context manager, which closes the file.

    Args:
        source: image file as for `read_image`, upright as there, or an array [H, W] or [H, W, C] in RGB order.
        page: index of the page of a TIFF stack, or of the pages that are its channels; None takes a file that is one
            image.
        rule: picks the channels, and says what stacks become; None takes an image with all its channels.

    Raises:
        ImageReadError: the file is missing, damaged, of zero size, a stack without `page`, or has no such page; or the
            channels cannot be picked.
    """
    if isinstance(source, np.ndarray):
        pixels = source[:, :, None] if source.ndim == 2 else source  # [H, W, C]
        windows = ImageWindows("the image", pixels, alpha=None)
        yield windows if rule is None else windows.pick(rule)
        return
    name = os.fspath(source)
    tiff = None
    try:
        with reading(name) as local_path:
            if is_tiff(local_path):
                tiff = open_tiff(name, local_path)
                windows = _tiff_windows(name, tiff, page, rule or ChannelRule(None))
            elif page is not None:
                raise ImageReadError(f"{name}: only a TIFF has pages, but page {page} is wanted.")
            else:
                windows = None
            if windows is None:
                decoded = decode(name, local_path, rule)
                windows = ImageWindows(name, decoded.pixels, decoded.alpha, names=decoded.names)
        yield windows if rule is None else windows.pick(rule)
    finally:
        if tiff is not None:
            tiff.close()


def _tiff_windows(
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
    plain = first.photometric in (MINISWHITE, MINISBLACK, RGB) and tiff_orientation(tiff) == 1
    if not plain or first.dtype is None:
        return _refuse_page(name, page)
    alpha = alpha_of_page(first) if len(pages) == 1 else ()
    inverted = first.photometric == MINISWHITE and first.dtype.kind in "ub"
    if offset is not None and first.bitspersample == 8 * first.dtype.itemsize:
        stored = first.dtype.newbyteorder(tiff.byteorder)
        pixels = np.memmap(tiff.filehandle.path, dtype=stored, mode="r", offset=offset, shape=shape)
        pixels = image_of_axes(name, pixels, axes, rule)
        return ImageWindows(name, pixels, alpha, names=names, inverted=inverted)
    for each in pages:
        check_segments(name, each, tiff.filehandle.size)
    try:
        return TiffWindows(name, pages, alpha, names, inverted)
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        return _refuse_page(name, page)


def _refuse_page(name: str, page: int | Sequence[int] | None) -> None:
    """Pillow, which reads the rest, is asked for the first page only."""
    if page is not None:
        raise ImageReadError(
            f"{name}: page {page} has a compression or colours that cannot be read from a stack here. Install the "
            "Python package imagecodecs, or save the page as a file of its own without compression."
        )
