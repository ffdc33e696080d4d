"""Rendered nuclei as fluorescence and stained tissue show them, a function of a seed: samples, not data to train on.

The colours of the tissue are mixed in optical density, with the stain vectors of Ruifrok and Johnston, "Quantification
of histochemical staining by color deconvolution" (2001), Table 1.

Shape shorthand: H, W image height and width; h, w the window of one nucleus.
"""

from __future__ import annotations

import cv2
import numpy as np

from maskrcnn_plus.data.cells import Cell, check_request, number_visible, shape_cell, smooth_noise

__all__ = ["STAINS", "render_nuclei"]

STAINS = ("fluorescence", "tissue")

_HEMATOXYLIN = np.array([0.65, 0.70, 0.29], dtype=np.float32)
_EOSIN = np.array([0.07, 0.99, 0.11], dtype=np.float32)
_AREA = 900  # pixels of the image for each nucleus that is tried


def render_nuclei(stain: str, seed: int, index: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Render one image. The same arguments give the same pixels in every process.

    Args:
        stain: "fluorescence", bright on black and grey; or "tissue", hematoxylin and eosin in colour.
        seed, index: 0 or more; which series and which image of it.
        height, width: 32..8192 pixels.

    Returns:
        image: [H, W] or [H, W, 3] uint8, RGB.
        label_map: [H, W] uint16, 0 = background, 1..K = nuclei without a gap.

    Raises:
        DataError: an argument is out of range.
    """
    check_request(seed, index, height, width)
    rng = np.random.default_rng((seed, index, 2 + STAINS.index(stain)))
    nuclei, label_map = _lay_out(rng, height, width)
    paint = _paint_fluorescence if stain == "fluorescence" else _paint_tissue
    return paint(nuclei, rng, height, width), label_map


def _lay_out(rng: np.random.Generator, height: int, width: int) -> tuple[list[Cell], np.ndarray]:
    """Nuclei that touch here and there, and their label map [H, W]."""
    nuclei: list[Cell] = []
    placed = np.zeros((0, 3))  # y, x, radius
    order_map = np.zeros((height, width), dtype=np.int64)
    for _ in range(max(3, int(height * width / _AREA * rng.uniform(0.7, 1.3)))):
        radius, centre = rng.uniform(8, 13), rng.uniform((0, 0), (height, width))
        distances = np.hypot(placed[:, 0] - centre[0], placed[:, 1] - centre[1])
        if (distances > 0.85 * (placed[:, 2] + radius)).all():
            placed = np.vstack([placed, [*centre, radius]])
            nuclei.append(shape_cell(rng, int(rng.random() < 0.2), radius, centre, height, width))  # a fifth elongated
            order_map[nuclei[-1].window][nuclei[-1].rho < 1] = len(nuclei)
    kept, label_map = number_visible(order_map)
    return [nuclei[order - 1] for order in kept], label_map


def _paint_fluorescence(nuclei: list[Cell], rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A camera's image of a DNA stain: [H, W] uint8."""
    canvas = 0.03 * np.exp(0.3 * smooth_noise(rng, height, width, 30.0))  # [H, W]
    texture = 1 + 0.10 * smooth_noise(rng, height, width, 2.5) + 0.05 * smooth_noise(rng, height, width, 1.1)
    for nucleus in nuclei:
        dome = np.clip(1 - nucleus.rho**2, 0, 1) ** 0.25
        light = rng.uniform(0.25, 0.8) * (0.5 + 0.5 * dome) * texture[nucleus.window]
        canvas[nucleus.window] += nucleus.cover() * np.clip(light - canvas[nucleus.window], 0, None)
    canvas = cv2.GaussianBlur(canvas, (0, 0), 0.9) + 0.12 * cv2.GaussianBlur(canvas, (0, 0), 8.0)  # light out of focus
    canvas += np.sqrt(0.008**2 + 0.001 * canvas) * rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.rint(255 * np.clip(canvas, 0, 1)).astype(np.uint8)


def _paint_tissue(nuclei: list[Cell], rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A slide in transmitted light, [H, W, 3] uint8: densities of two stains, and the light that they leave."""
    fibres = smooth_noise(rng, height, width, 5.0) + 0.5 * smooth_noise(rng, height, width, 1.5)
    eosin = np.clip(0.38 + 0.16 * smooth_noise(rng, height, width, 25.0) + 0.07 * fibres, 0.03, None)  # [H, W]
    hematoxylin = np.clip(0.10 + 0.03 * smooth_noise(rng, height, width, 10.0), 0, None)
    texture = 1 + 0.22 * smooth_noise(rng, height, width, 2.0)
    for nucleus in nuclei:
        rim = 0.25 * np.exp(-(((nucleus.rho - 0.9) / 0.12) ** 2))
        density = rng.uniform(0.6, 1.2) * (texture[nucleus.window] + rim)
        cover, below = nucleus.cover(), hematoxylin[nucleus.window]
        hematoxylin[nucleus.window] = below + cover * np.clip(density - below, 0, None)
        eosin[nucleus.window] *= 1 - 0.5 * cover
    density = hematoxylin[:, :, None] * _HEMATOXYLIN + eosin[:, :, None] * _EOSIN  # [H, W, 3]
    light = cv2.GaussianBlur(0.95 * np.exp(-density), (0, 0), 0.8)
    light += 0.012 * rng.standard_normal(light.shape, dtype=np.float32)
    return np.rint(255 * np.clip(light, 0, 1)).astype(np.uint8)
