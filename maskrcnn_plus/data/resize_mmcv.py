"""Resizing as MMCV does it (`mmcv.imrescale`), for models that were trained on images of this resizing.

As large as fits into a long and a short edge, sides rounded half up, bilinear by OpenCV without anti-aliasing;
Detectron2's `ResizeShortestEdge` rounds after limiting and averages where it shrinks.

Shape shorthand: [H, W] or [H, W, C] image, [h, w] resized.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.data.transforms import Augmentation
from detectron2.data.transforms import ResizeTransform as PILResizeTransform


class CV2ResizeTransform(PILResizeTransform):
    """Detectron2's resizing of coordinates and label images, with OpenCV's bilinear resizing of images."""

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize an image [H, W] or [H, W, C] to [h, w] or [h, w, C].

        With `interp`, a method of PIL, it is resized by PIL: label images come so, with nearest neighbours.
        """
        if interp is not None:
            return super().apply_image(img, interp)
        resized = cv2.resize(img, (self.new_w, self.new_h), interpolation=cv2.INTER_LINEAR)
        return resized.reshape(self.new_h, self.new_w, *img.shape[2:])  # OpenCV drops a single channel

    def inverse(self) -> CV2ResizeTransform:
        """The transform back to the size before."""
        return CV2ResizeTransform(self.new_h, self.new_w, self.h, self.w)


class MMCVResize(Augmentation):
    """Resize to as large as fits into a long and a short edge, keeping the ratio of the sides."""

    def __init__(self, short_edge_length: int | Sequence[int], max_size: int):
        """Check the arguments.

        Args:
            short_edge_length: limit of the shorter side, pixels; of several, one is chosen at random for each image.
            max_size: limit of the longer side, pixels.

        Raises:
            ValueError: a length is not positive, or none is given.
        """
        super().__init__()
        lengths = (short_edge_length,) if isinstance(short_edge_length, int) else tuple(short_edge_length)
        if not lengths or min(lengths) < 1 or max_size < 1:
            raise ValueError(
                f"short_edge_length and max_size must be positive, got {short_edge_length!r} and {max_size!r}"
            )
        self.short_edge_length = lengths
        self.max_size = max_size

    def get_transform(self, image: np.ndarray) -> CV2ResizeTransform:
        """The transform of an image [H, W] or [H, W, C]."""
        height, width = image.shape[:2]
        short_edge = int(np.random.choice(self.short_edge_length))  # noqa: NPY002, Detectron2 seeds the global generator
        # mmcv.rescale_size: the larger number limits the longer side, whichever of the two it is.
        scale = min(
            max(short_edge, self.max_size) / max(height, width), min(short_edge, self.max_size) / min(height, width)
        )
        new_height, new_width = (max(int(side * scale + 0.5), 1) for side in (height, width))
        return CV2ResizeTransform(height, width, new_height, new_width)
