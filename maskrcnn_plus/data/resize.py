"""Resizing as torchvision's detectors do it: bilinear without smoothing, in floats, with sizes rounded down.

Source: torchvision, models/detection/transform.py, `GeneralizedRCNNTransform`. Detectron2's `ResizeShortestEdge`
smooths where it shrinks, and rounds grey levels and sizes to the nearest whole number. A trained network notices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data.transforms import Augmentation
from fvcore.transforms.transform import Transform
from torch.nn import functional as F


class InterpolateTransform(Transform):
    """Resize to a given size by `torch.nn.functional.interpolate`."""

    def __init__(self, height: int, width: int, new_height: int, new_width: int) -> None:
        """Set up the resizing of images [height, width] to [new_height, new_width], pixels."""
        super().__init__()
        self.size = (height, width)
        self.new_size = (new_height, new_width)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Resize an image [H, W] or [H, W, C] of any dtype; the result is float32 with the same range of values."""
        self._check(img)
        if self.new_size == self.size:
            return np.array(img, dtype=np.float32)
        pixels = np.ascontiguousarray(img.reshape(*self.size, -1).transpose(2, 0, 1), dtype=np.float32)  # [C, H, W]
        resized = F.interpolate(torch.from_numpy(pixels)[None], self.new_size, mode="bilinear", align_corners=False)
        return resized[0].permute(1, 2, 0).reshape(*self.new_size, *img.shape[2:]).numpy()  # [new_H, new_W, ...]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize a label image [H, W]: each pixel takes the label at its top left corner; the dtype stays."""
        self._check(segmentation)
        rows, columns = (
            F.interpolate(torch.arange(old, dtype=torch.float32)[None, None], new)[0, 0].long().numpy()
            for old, new in zip(self.size, self.new_size, strict=True)
        )
        return segmentation[rows[:, None], columns]

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Scale points [N, 2] (x, y)."""
        (height, width), (new_height, new_width) = self.size, self.new_size
        return np.asarray(coords) * (new_width / width, new_height / height)

    def inverse(self) -> Transform:
        """Return the resizing back."""
        return InterpolateTransform(*self.new_size, *self.size)

    def _check(self, pixels: np.ndarray) -> None:
        if pixels.shape[:2] != self.size:
            raise ValueError(
                f"InterpolateTransform was set up for images of {self.size[1]}x{self.size[0]} pixels, "
                f"got {pixels.shape[1]}x{pixels.shape[0]}."
            )


class InterpolateShortestEdge(Augmentation):
    """Drop-in for `ResizeShortestEdge` with torchvision's interpolation and rounding."""

    def __init__(
        self, short_edge_length: int | Sequence[int], max_size: int = 1333, sample_style: str = "choice"
    ) -> None:
        """Check the arguments.

        Args:
            short_edge_length: shorter side of the result, pixels; of several, one is drawn for each image.
            max_size: upper limit of the longer side.
            sample_style: "choice" draws one of the lengths, "range" a whole number between the two of them.

        Raises:
            ValueError: an argument is out of range.
        """
        super().__init__()
        lengths = [short_edge_length] if isinstance(short_edge_length, int) else list(short_edge_length)
        if not lengths or any(length < 1 for length in lengths) or max_size < 1:
            raise ValueError(
                f"short_edge_length and max_size must be positive, got {short_edge_length!r} and {max_size!r}."
            )
        if sample_style not in ("choice", "range"):
            raise ValueError(f'sample_style must be "choice" or "range", got {sample_style!r}.')
        if sample_style == "range" and (len(lengths) != 2 or lengths[0] > lengths[1]):
            raise ValueError(f'sample_style "range" needs two lengths (min, max), got {short_edge_length!r}.')
        self.short_edge_length = lengths
        self.max_size = max_size
        self.sample_style = sample_style

    def get_transform(self, image: np.ndarray) -> InterpolateTransform:
        """Draw the length and compute the output size from the image's."""
        if self.sample_style == "range":
            length = int(self._rand_range(self.short_edge_length[0], self.short_edge_length[1] + 1))
        else:
            length = self.short_edge_length[int(self._rand_range(0, len(self.short_edge_length)))]
        height, width = image.shape[:2]
        scale = min(length / min(height, width), self.max_size / max(height, width))
        # Down, and by this very formula: 427 * (800 / 427) is below 800.
        return InterpolateTransform(height, width, max(int(height * scale), 1), max(int(width * scale), 1))
