"""Augmentations for dense small objects: fixed-size crops with scale jitter, right-angle rotation.

Image, label image and coordinates follow one convention: pixel i covers [i, i + 1) and its centre lies at i + 0.5.
Label images are gathered by index and keep their dtype and every value. Random numbers come from numpy's global
generator, as in all of Detectron2's augmentations. Detectron2's `T.RandomFlip` serves for flips.

Shape shorthand: [H, W] source image, C channels, [h, w] output.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.data.transforms import Augmentation
from fvcore.transforms.transform import Transform

from maskrcnn_plus.arguments import check_arguments, check_range
from maskrcnn_plus.data.pixels import resize_pixels
from maskrcnn_plus.masks.polygons import clip_polygon


class CropResizeTransform(Transform):
    """Cut a rectangle of whole pixels, resize it, and pad it right and below to the output size."""

    def __init__(
        self,
        crop: tuple[int, int, int, int],
        resized: tuple[int, int],
        output: tuple[int, int],
        pad_value: float = 0,
    ) -> None:
        """Set up the transform of images that contain `crop`.

        Args:
            crop: (x, y, width, height) of the rectangle in the source image, pixels.
            resized: (height, width) of the resized rectangle, at most `output`.
            output: (h, w) of the result.
            pad_value: value of padded image pixels; padded label pixels are 0.
        """
        super().__init__()
        self.crop = crop
        self.resized = resized
        self.output = output
        self.pad_value = pad_value

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Transform an image [H, W] or [H, W, C]: area average when shrinking, else linear interpolation."""
        x, y, width, height = self.crop
        cut = np.ascontiguousarray(img[y : y + height, x : x + width])
        return self._pad(resize_pixels(cut, self.resized), self.pad_value)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Transform a label image [H, W] of any dtype: each output pixel takes the label below its centre."""
        x, y, width, height = self.crop
        rows, columns = self.resized
        source_rows = y + (2 * np.arange(rows) + 1) * height // (2 * rows)
        source_columns = x + (2 * np.arange(columns) + 1) * width // (2 * columns)
        return self._pad(segmentation[source_rows[:, None], source_columns], 0)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Transform points [N, 2] (x, y)."""
        x, y, width, height = self.crop
        rows, columns = self.resized
        return (np.asarray(coords) - (x, y)) * (columns / width, rows / height)

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """Transform polygons [N, 2] and cut off what lies outside; polygons with nothing inside are left out."""
        height, width = self.resized
        clipped = [clip_polygon(self.apply_coords(polygon), width, height) for polygon in polygons]
        return [polygon for polygon in clipped if len(polygon)]

    def _pad(self, pixels: np.ndarray, value: float) -> np.ndarray:
        if pixels.shape[:2] == self.output:
            return pixels
        padded = np.full((*self.output, *pixels.shape[2:]), value, dtype=pixels.dtype)
        padded[: pixels.shape[0], : pixels.shape[1]] = pixels
        return padded


class RandomScaleCrop(Augmentation):
    """A window at a random place and scale, resized to a fixed size; costs the window, whatever the image's size."""

    def __init__(
        self,
        size: int | tuple[int, int],
        scale: tuple[float, float] = (1.0, 1.0),
        pad_value: float = 0,
        short_side: int | None = None,
    ) -> None:
        """Check the arguments.

        Args:
            size: side of the output, or its (height, width), pixels.
            scale: (min, max) magnification of the image, drawn log-uniformly. The window has size / scale pixels.
            short_side: the scale is of an image whose shorter side has so many pixels, for photographs, whose objects
                are as large as the camera's resolution makes them; None: of the image as it is.
            pad_value: grey level of what lies right of and below an image smaller than the window.

        Raises:
            ValueError: an argument is out of range.
        """
        super().__init__()
        self.size = tuple(size) if isinstance(size, Sequence) else (size, size)
        is_pair = len(self.size) == 2 and all(isinstance(side, int) and side >= 1 for side in self.size)
        check_arguments(
            size=(size, is_pair, "a positive whole number of pixels or a pair (height, width)"),
            pad_value=(pad_value, 0 <= pad_value <= 255, "in 0..255"),
            short_side=(short_side, short_side is None or short_side >= 1, "at least 1 pixel, or None"),
        )
        self.scale = check_range("scale", scale, minimum=0.0, inclusive=False)
        self.pad_value = pad_value
        self.short_side = short_side

    def get_transform(self, image: np.ndarray) -> CropResizeTransform:
        """Draw the scale and the place of the window."""
        scale = float(np.exp(self._rand_range(*np.log(self.scale)))) * _to_short_side(image, self.short_side)
        crop, resized = [], []
        for output, available in zip(self.size, image.shape[:2], strict=True):
            window = max(round(output / scale), 1)
            length = min(window, available)
            start = min(int(self._rand_range(0, available - length + 1)), available - length)
            crop.append((start, length))
            resized.append(output if length == window else min(max(round(length * output / window), 1), output))
        (y, height), (x, width) = crop
        return CropResizeTransform((x, y, width, height), tuple(resized), self.size, self.pad_value)


class ScaleImage(Augmentation):
    """Magnify the image by a fixed factor, less where its longer side would exceed a limit. For inference."""

    def __init__(self, scale: float, max_size: int = 4096, short_side: int | None = None) -> None:
        """Check the arguments.

        Args:
            scale: factor above 0.
            max_size: upper limit of the longer side of the result, pixels; it also shrinks larger images.
            short_side: as of `RandomScaleCrop`.

        Raises:
            ValueError: an argument is out of range.
        """
        super().__init__()
        check_arguments(
            scale=(scale, 0 < scale < float("inf"), "a finite number above 0"),
            max_size=(max_size, max_size >= 1, "at least 1 pixel"),
            short_side=(short_side, short_side is None or short_side >= 1, "at least 1 pixel, or None"),
        )
        self.scale = scale
        self.max_size = max_size
        self.short_side = short_side

    def get_transform(self, image: np.ndarray) -> CropResizeTransform:
        """Compute the output size from the image's."""
        height, width = image.shape[:2]
        scale = min(self.scale * _to_short_side(image, self.short_side), self.max_size / max(height, width))
        output = (max(round(height * scale), 1), max(round(width * scale), 1))
        return CropResizeTransform((0, 0, width, height), output, output)


class Rotate90Transform(Transform):
    """Rotate by k quarter turns counter-clockwise, as np.rot90 does."""

    def __init__(self, height: int, width: int, k: int) -> None:
        """Set up the rotation of images [height, width] by k in 0..3 quarter turns."""
        super().__init__()
        self.height = height
        self.width = width
        self.k = k

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Rotate an image [H, W] or [H, W, C], or a label image."""
        return np.rot90(img, self.k)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Rotate points [N, 2] (x, y)."""
        x, y = np.asarray(coords).T
        turned = ((x, y), (y, self.width - x), (self.width - x, self.height - y), (self.height - y, x))[self.k]
        return np.stack(turned, axis=1)

    def inverse(self) -> Rotate90Transform:
        """Return the rotation back."""
        height, width = (self.width, self.height) if self.k % 2 else (self.height, self.width)
        return Rotate90Transform(height, width, -self.k % 4)


class RandomRotate90(Augmentation):
    """Rotate by 0, 1, 2 or 3 quarter turns, each equally likely."""

    def get_transform(self, image: np.ndarray) -> Rotate90Transform:
        """Draw the number of quarter turns."""
        return Rotate90Transform(*image.shape[:2], k=min(int(self._rand_range(0, 4)), 3))


def _to_short_side(image: np.ndarray, short_side: int | None) -> float:
    """Factor that gives the shorter side of an image so many pixels."""
    return 1.0 if short_side is None else short_side / min(image.shape[:2])
