"""Augmentation of how micrographs look: stains, colours, focus and illumination.

Images are [H, W, C] of uint8 or float32 in 0..255 and keep their type; stains and colours change those of three
channels alone. Random numbers come from numpy's global generator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np
from detectron2.data.transforms import Augmentation, ColorTransform

from maskrcnn_plus.arguments import check_arguments, check_range

# Optical densities of haematoxylin, eosin and DAB in red, green and blue: Ruifrok and Johnston (2001), Table 1.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


class RandomStain(Augmentation):
    """Vary the amounts of haematoxylin, eosin and DAB, as laboratories and scanners do.

    Source: Tellez et al., "Whole-Slide Mitosis Detection in H&E Breast Histology Using PHH3 as a Reference to Train
    Distilled Stain-Invariant Convolutional Networks" (2018), Sec. IV-C.
    """

    def __init__(self, factor: float = 0.3, offset: float = 0.05, order: str = "RGB") -> None:
        """Check the arguments.

        Args:
            factor: each stain's density is multiplied by 1 - factor to 1 + factor.
            offset: -offset to offset is added to it.
            order: of the channels, "RGB" or "BGR".

        Raises:
            ValueError: an argument is out of range.
        """
        super().__init__()
        check_arguments(
            factor=(factor, 0 <= factor < 1, "at least 0 and below 1"),
            offset=(offset, 0 <= offset < float("inf"), "a finite number of at least 0"),
            order=(order, order in ("RGB", "BGR"), "'RGB' or 'BGR'"),
        )
        self.factor = factor
        self.offset = offset
        self.stains = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)
        if order == "BGR":
            self.stains = self.stains[:, ::-1]

    def get_transform(self, image: np.ndarray) -> ColorTransform:
        """Draw the change of each stain."""
        factors = np.array([self._rand_range(1 - self.factor, 1 + self.factor) for _ in range(3)])
        offsets = np.array([self._rand_range(-self.offset, self.offset) for _ in range(3)])
        mixed = np.linalg.inv(self.stains) @ np.diag(factors) @ self.stains  # density of channels -> density
        return _of_three(functools.partial(_change_density, matrix=mixed, offset=offsets @ self.stains))


class RandomColour(Augmentation):
    """Turn the hue, weaken channels, as pseudo-colours do, or take the colours away."""

    def __init__(self, hue: float = 0.0, gain: tuple[float, float] = (1.0, 1.0), grey: float = 0.0) -> None:
        """Check the arguments; the defaults change nothing.

        Args:
            hue: the hue is turned by up to so many degrees, about the axis of greys.
            gain: (low, high) factor of each channel.
            grey: probability of the mean of the channels in each of them.

        Raises:
            ValueError: an argument is out of range.
        """
        super().__init__()
        check_arguments(
            hue=(hue, 0 <= hue <= 180, "0 to 180 degrees"), grey=(grey, 0 <= grey <= 1, "a probability in 0..1")
        )
        self.hue = hue
        self.gain = check_range("gain", gain, minimum=0.0)
        self.grey = grey

    def get_transform(self, image: np.ndarray) -> ColorTransform:
        """Draw the angle and the factors."""
        angle = np.deg2rad(self._rand_range(-self.hue, self.hue))
        gains = np.array([self._rand_range(*self.gain) for _ in range(3)])
        is_grey = self._rand_range() < self.grey
        matrix = np.full((3, 3), 1 / 3) if is_grey else gains[:, None] * _rotation(angle)
        return _of_three(lambda image: _as_type(cv2.transform(image.astype(np.float32), matrix), image.dtype))


class RandomBlur(Augmentation):
    """Blur an image as one that is out of focus."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        """Check the arguments.

        Args:
            sigma: (low, high) of the standard deviation of the Gaussian in pixels.

        Raises:
            ValueError: an argument is out of range.
        """
        super().__init__()
        self.sigma = check_range("sigma", sigma, minimum=0.0)

    def get_transform(self, image: np.ndarray) -> ColorTransform:
        """Draw the width of the Gaussian."""
        return ColorTransform(functools.partial(_blur, sigma=float(self._rand_range(*self.sigma))))


class RandomIllumination(Augmentation):
    """Uneven light: the image is multiplied by a plane that falls from one side to the other."""

    def __init__(self, strength: float) -> None:
        """Check the arguments.

        Args:
            strength: the factors reach from 1 - strength to 1 + strength, at most.

        Raises:
            ValueError: an argument is out of range.
        """
        super().__init__()
        check_arguments(strength=(strength, 0 <= strength <= 1, "in 0..1"))
        self.strength = strength

    def get_transform(self, image: np.ndarray) -> ColorTransform:
        """Draw the direction and the strength."""
        angle, strength = self._rand_range(0, 2 * np.pi), self._rand_range(0, self.strength)
        return ColorTransform(functools.partial(_illuminate, angle=float(angle), strength=float(strength)))


def _of_three(change: Callable[[np.ndarray], np.ndarray]) -> ColorTransform:
    """Transform of images of three channels; others stay as they are."""
    return ColorTransform(lambda image: change(image) if image.ndim == 3 and image.shape[2] == 3 else image)


def _change_density(image: np.ndarray, matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Change the optical densities [H, W, 3] linearly."""
    density = -np.log((image.astype(np.float32) + 1) / 256)  # [H, W, 3]
    changed = density.reshape(-1, 3) @ matrix.astype(np.float32) + offset.astype(np.float32)
    return _as_type(256 * np.exp(-changed.reshape(image.shape)) - 1, image.dtype)


def _rotation(angle: float) -> np.ndarray:
    """Rotation of RGB space about the axis of greys, [3, 3] (Rodrigues' formula)."""
    axis = np.full(3, 3**-0.5)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * np.outer(axis, axis)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return image if sigma == 0 else cv2.GaussianBlur(image, (0, 0), sigma).reshape(image.shape)


def _illuminate(image: np.ndarray, angle: float, strength: float) -> np.ndarray:
    rows, columns = (np.linspace(-1, 1, side, dtype=np.float32) for side in image.shape[:2])
    plane = (np.cos(angle) * columns + np.sin(angle) * rows[:, None]) / np.sqrt(2)  # [H, W] in -1..1
    factors = 1 + np.float32(strength) * plane
    return _as_type(image * factors.reshape(*factors.shape, *[1] * (image.ndim - 2)), image.dtype)


def _as_type(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    image = image.clip(0, 255)
    return np.rint(image).astype(np.uint8) if dtype == np.uint8 else image.astype(dtype)
