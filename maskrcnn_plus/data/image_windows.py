"""An image of which windows are asked for: in memory, mapped into it, or read from a file as it is needed.

Shape shorthand: H, W image height and width, C channels (RGB order for colour); [h, w] a window.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np

from maskrcnn_plus.data.channels import ChannelRule, get_array_alpha
from maskrcnn_plus.data.read_error import ImageReadError

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
        self.picked, self._picks, self._origin = False, None, (0, 0)  # (x, y)

    def get_alpha(self, rule: ChannelRule) -> Sequence[int]:
        """Indices of the channels that are alpha where `rule` picks."""
        return get_array_alpha(self.name, self._pixels, rule) if self.alpha is None else self.alpha

    def pick(self, rule: ChannelRule) -> ImageWindows:
        """Windows of the channels that go into the network by `rule`: 1, 3 or `rule.count` of them.

        Windows of picked channels stay as they are.

        Raises:
            ImageReadError: the channels cannot be chosen.
        """
        if self.picked:
            return self
        indices = rule.indices(self.name, self.shape[2], self.get_alpha(rule), self.channel_names)
        found = copy.copy(self)
        found.picked, found.alpha, found.channel_names = True, (), ()
        if indices != list(range(self.shape[2])):
            found._picks, found.shape = indices, (*self.shape[:2], len(indices))
        return found

    def crop(self, x: int, y: int, width: int, height: int) -> ImageWindows:
        """A part of the image as an image of its own, of which windows are read as of this one.

        Raises:
            ImageReadError: the part is not within the image.
        """
        rows, columns = self.shape[:2]
        if min(x, y) < 0 or min(width, height) < 1 or x + width > columns or y + height > rows:
            raise ImageReadError(
                f"{self.name}: the part of {width} x {height} pixels at {x}, {y} is not within the image of "
                f"{columns} x {rows} pixels."
            )
        found = copy.copy(self)
        found.shape, found._origin = (height, width, self.shape[2]), (self._origin[0] + x, self._origin[1] + y)
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
        pixels = self._read(x + self._origin[0], y + self._origin[1], width, height)
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
