"""Augmentation of intensities and colours. Random numbers come from numpy's global generator.

Shape shorthand: [H, W] image, C channels.
"""

from __future__ import annotations

import numpy as np
from detectron2.data.transforms import Augmentation, ColorTransform

from maskrcnn_plus.arguments import check_arguments, check_range


class IntensityTransform(ColorTransform):
    """Change an image in 0..255 by saturation, gamma, contrast, brightness, inversion and noise, in this order."""

    def __init__(
        self,
        brightness: float,
        contrast: float,
        gamma: float,
        invert: bool,
        noise: float,
        noise_seed: int,
        saturation: float = 1.0,
    ) -> None:
        """Set up the change; the parameters are those of `RandomIntensity`, `noise_seed` fixes the noise."""
        super().__init__(self.apply_image)
        self.brightness = brightness
        self.contrast = contrast
        self.gamma = gamma
        self.invert = invert
        self.noise = noise
        self.noise_seed = noise_seed
        self.saturation = saturation

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Change an image [H, W] or [H, W, C] of uint8 or float32; same dtype, clipped to 0..255.

        Raises:
            ValueError: another dtype.
        """
        if img.dtype not in (np.uint8, np.float32):
            raise ValueError(f"IntensityTransform takes uint8 or float32 images in 0..255, got {img.dtype}.")
        if self.saturation != 1 and img.ndim == 3 and img.shape[2] == 3:
            img = self._change_saturation(img)
        if img.dtype == np.uint8:
            counts = np.bincount(img.ravel(), minlength=256)
            table = self._change_levels(np.arange(256, dtype=np.float32), weights=counts)
            if self.noise == 0:
                return np.rint(table.clip(0, 255)).astype(np.uint8)[img]
            changed = table[img]
        else:
            changed = self._change_levels(img, weights=None)
        if self.noise > 0:
            # One value a pixel: the noise of a grey image repeated into three channels stays grey.
            noise = np.random.default_rng(self.noise_seed).standard_normal(img.shape[:2], dtype=np.float32)
            changed = changed + np.float32(self.noise) * noise.reshape(*img.shape[:2], *[1] * (img.ndim - 2))
        changed = changed.clip(0, 255)
        return np.rint(changed).astype(np.uint8) if img.dtype == np.uint8 else changed

    def _change_saturation(self, img: np.ndarray) -> np.ndarray:
        """Move the three channels of each pixel from, or towards, their mean, whatever their order."""
        grey = img.mean(axis=2, keepdims=True, dtype=np.float32)  # [H, W, 1]
        changed = (grey + np.float32(self.saturation) * (img - grey)).clip(0, 255)
        return np.rint(changed).astype(np.uint8) if img.dtype == np.uint8 else changed

    def _change_levels(self, levels: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        """Map grey levels; `weights` are the numbers of pixels of each level, None where each is one pixel."""
        if self.gamma != 1:
            levels = 255 * (levels.clip(0, 255) / 255) ** np.float32(self.gamma)
        if self.contrast != 1:
            mean = np.float32(np.average(levels, weights=weights))
            levels = mean + np.float32(self.contrast) * (levels - mean)
        levels = np.float32(self.brightness) * levels
        return 255 - levels if self.invert else levels


class RandomIntensity(Augmentation):
    """Random saturation, gamma, contrast, brightness, inversion and noise; the geometry stays."""

    def __init__(
        self,
        brightness: tuple[float, float] = (1.0, 1.0),
        contrast: tuple[float, float] = (1.0, 1.0),
        gamma: tuple[float, float] = (1.0, 1.0),
        invert: float = 0.0,
        noise: tuple[float, float] = (0.0, 0.0),
        saturation: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        """Check the arguments; the defaults change nothing. Each (low, high) is drawn from uniformly.

        Args:
            brightness: factor of all grey levels.
            contrast: factor of the distance from the image's mean.
            gamma: exponent on levels scaled to 0..1; below 1 brightens.
            invert: probability of 255 - level.
            noise: standard deviation of Gaussian noise in grey levels, the same in all channels of a pixel.
            saturation: factor of the distance of each channel from the mean of the three; other numbers of channels
                stay as they are.

        Raises:
            ValueError: an argument is out of range.
        """
        super().__init__()
        self.brightness = check_range("brightness", brightness, minimum=0.0)
        self.contrast = check_range("contrast", contrast, minimum=0.0)
        self.gamma = check_range("gamma", gamma, minimum=0.0, inclusive=False)
        self.noise = check_range("noise", noise, minimum=0.0)
        self.saturation = check_range("saturation", saturation, minimum=0.0)
        check_arguments(invert=(invert, 0 <= invert <= 1, "a probability in 0..1"))
        self.invert = invert

    def get_transform(self, image: np.ndarray) -> IntensityTransform:
        """Draw the parameters."""
        return IntensityTransform(
            brightness=float(self._rand_range(*self.brightness)),
            contrast=float(self._rand_range(*self.contrast)),
            gamma=float(self._rand_range(*self.gamma)),
            invert=bool(self._rand_range() < self.invert),
            noise=float(self._rand_range(*self.noise)),
            noise_seed=int(self._rand_range(0, 2**32)),
            # The numbers of an image stay what they are without it.
            saturation=1.0 if self.saturation == (1.0, 1.0) else float(self._rand_range(*self.saturation)),
        )
