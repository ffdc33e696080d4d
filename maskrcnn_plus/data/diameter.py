"""Images brought to one size of their objects: training and inference at a common diameter, whatever the magnification.

The diameter of an object is that of a disc of its area, in pixels of the image; that of an image is the median over its
objects, as in Cellpose (Stringer et al., Nature Methods 18:100, 2021). In training and in evaluations it comes from the
annotations, of images without them from an estimate (`inference/auto_scale.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data.transforms import AugInput, Augmentation
from detectron2.structures import BoxMode

from maskrcnn_plus.arguments import check_arguments, check_range
from maskrcnn_plus.data.augmentation import CropResizeTransform, RandomScaleCrop, ScaleImage


def median_diameter(annotations: Sequence[dict[str, Any]]) -> float | None:
    """The median diameter of an image's objects.

    Args:
        annotations: of a Detectron2 dataset dict; where they have no `area` in pixels, a disc fills the box.

    Returns:
        Pixels; None where there is no object with an area or a box, but for crowds.
    """
    areas = [_area(each) for each in annotations if not each.get("iscrowd", 0) and ("area" in each or "bbox" in each)]
    return float(disc_diameter(np.median(areas))) if areas else None


def disc_diameter(area: np.ndarray) -> np.ndarray:
    """The diameter of a disc of this area, or of each of several."""
    return 2 * np.sqrt(area / np.pi)


class MeasuredInput(AugInput):
    """An image that tells augmentations the median diameter of its objects, where they ask."""

    def __init__(
        self, image: np.ndarray, annotations: Sequence[dict[str, Any]] = (), object_diameter: float | None = None
    ) -> None:
        """Keep an image [H, W] or [H, W, C] with its annotations, or with a diameter in pixels instead of them."""
        super().__init__(image)
        self._annotations, self._diameter = annotations, object_diameter

    @property
    def object_diameter(self) -> float | None:
        """Pixels of the image as it was read; None where it is unknown."""
        return median_diameter(self._annotations) if self._diameter is None else self._diameter


class ScaleToDiameter(Augmentation):
    """Magnify an image so that its objects have a given diameter. For inference."""

    def __init__(
        self, diameter: float, limits: tuple[float, float] = (0.02, 4.0), max_size: int = 4096, factor: float = 1.0
    ) -> None:
        """Check the arguments.

        Args:
            diameter: of the objects in the result, pixels.
            limits: (least, largest) magnification.
            max_size: upper limit of the longer side of the result, pixels.
            factor: of an image whose objects are unknown.

        Raises:
            ValueError: an argument is out of range.
        """
        super().__init__()
        self.diameter, self.limits = _check(diameter, limits)
        self.max_size = max_size
        self.factor = factor
        ScaleImage(factor, max_size)  # refuses what is out of range

    def get_transform(self, image: np.ndarray, object_diameter: float | None) -> CropResizeTransform:
        """Compute the output size from the image's and the median diameter of its objects, pixels."""
        return ScaleImage(self.scale(object_diameter), self.max_size).get_transform(image)

    def scale(self, object_diameter: float | None) -> float:
        """Pixels of the result for one of an image whose objects have this median diameter; None is not known."""
        return _magnification(self.diameter, object_diameter, self.limits) if object_diameter else self.factor


class RandomDiameterCrop(Augmentation):
    """A window at a random place, resized to a fixed size in which the objects have about a given diameter."""

    def __init__(
        self,
        size: int | tuple[int, int],
        diameter: float,
        jitter: tuple[float, float] = (0.667, 1.5),
        limits: tuple[float, float] = (0.1, 4.0),
        pad_value: float = 0,
    ) -> None:
        """Check the arguments.

        Args:
            size, pad_value: as of `RandomScaleCrop`.
            diameter: median of the objects in the result before the jitter, pixels.
            jitter: (min, max) factor of it, drawn log-uniformly.
            limits: (least, largest) magnification before the jitter; that of images without objects is drawn between
                them, from 0.5 to 2.

        Raises:
            ValueError: an argument is out of range.
        """
        super().__init__()
        self.size = size
        self.diameter, self.limits = _check(diameter, limits)
        self.jitter = check_range("jitter", jitter, minimum=0.0, inclusive=False)
        self.pad_value = pad_value
        RandomScaleCrop(size, pad_value=pad_value)  # refuses what is out of range

    def get_transform(self, image: np.ndarray, object_diameter: float | None) -> CropResizeTransform:
        """Draw the scale and the place of the window."""
        if object_diameter:
            scale = _magnification(self.diameter, object_diameter, self.limits)
            low, high = (scale * factor for factor in self.jitter)
        else:
            low, high = max(self.limits[0], 0.5), min(self.limits[1], 2.0)
        return RandomScaleCrop(self.size, (low, high), self.pad_value).get_transform(image)


def _check(diameter: float, limits: tuple[float, float]) -> tuple[float, tuple[float, float]]:
    check_arguments(diameter=(diameter, 0 < diameter < float("inf"), "a finite number of pixels above 0"))
    return diameter, check_range("limits", limits, minimum=0.0, inclusive=False)


def _magnification(wanted: float, measured: float, limits: tuple[float, float]) -> float:
    return min(max(wanted / measured, limits[0]), limits[1])


def _area(annotation: dict[str, Any]) -> float:
    if annotation.get("area"):
        return float(annotation["area"])
    mode = BoxMode(annotation.get("bbox_mode", BoxMode.XYXY_ABS))
    x0, y0, x1, y1 = BoxMode.convert(list(annotation["bbox"]), mode, BoxMode.XYXY_ABS)
    return math.pi / 4 * (x1 - x0) * (y1 - y0)
