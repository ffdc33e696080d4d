"""Rendered fluorescence micrographs of three kinds of cells, a function of a seed; see `maskrcnn_plus.data.synthetic`.

Shape shorthand: H, W image height and width; h, w the window of one cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from maskrcnn_plus.data.check import DataError

SYNTHETIC_CLASSES = ("round", "spindle", "lobed")

_SIZE_LIMITS = (32, 8192)
MIN_VISIBLE = 30  # pixels
_CELL_COLOURS = np.array([[0.10, 0.78, 0.58], [0.98, 0.50, 0.16], [0.78, 0.26, 0.86]], dtype=np.float32)
_NUCLEUS_COLOUR = np.array([0.30, 0.48, 1.00], dtype=np.float32)


def render_cells(seed: int, index: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, dict[int, int]]:
    """Render one image. The same arguments give the same pixels in every process.

    Args:
        seed, index: 0 or more; which data set and which image of it.
        height, width: 32..8192 pixels.

    Returns:
        image: [H, W, 3] uint8, RGB.
        label_map: [H, W] uint16, 0 = background, 1..K = cells without a gap.
        classes: category id (index in SYNTHETIC_CLASSES) of each label.

    Raises:
        DataError: an argument is out of range.
    """
    check_request(seed, index, height, width)
    cells, label_map, classes = lay_out_cells(seed, index, height, width)
    return _paint(cells, np.random.default_rng((seed, index, 1)), height, width), label_map, classes


def check_request(seed: int, index: int, height: int, width: int) -> None:
    """Refuse seeds and sizes that cannot be rendered."""
    low, high = _SIZE_LIMITS
    if min(seed, index) < 0 or not (low <= height <= high and low <= width <= high):
        raise DataError(
            f"Synthetic cells with seed {seed}, index {index} of {height} x {width} pixels: seed and index must be "
            f"0 or more, height and width {low}..{high}."
        )


@dataclass
class Cell:
    """One cell in its window of the image; arrays are [h, w]."""

    category: int
    radii: tuple[float, float]
    window: tuple[slice, slice]
    along: np.ndarray  # pixels from the centre along the major axis
    across: np.ndarray  # and across it
    rho: np.ndarray  # 0 at the centre, 1 on the outline

    def cover(self) -> np.ndarray:
        """How much of each pixel it covers: 0..1 over about two pixels at the outline."""
        return np.clip((1 - self.rho) * (0.5 * min(self.radii)) + 0.5, 0, 1)


def lay_out_cells(seed: int, index: int, height: int, width: int) -> tuple[list[Cell], np.ndarray, dict[int, int]]:
    """Place the cells from bottom to top; return them with the label map [H, W] and the category of each label."""
    rng = np.random.default_rng((seed, index))
    cells: list[Cell] = []
    placed = np.zeros((0, 3))  # y, x, radius
    order_map = np.zeros((height, width), dtype=np.int64)
    for _ in range(rng.integers(8, 41)):
        category, radius = int(rng.integers(3)), 9 + 16 * rng.beta(1.5, 2.2)
        for _ in range(15):
            centre = rng.uniform((0, 0), (height, width))
            if len(placed) and rng.random() < 0.7:  # grow a cluster
                y, x, neighbour = placed[rng.integers(len(placed))]
                angle, gap = rng.uniform(0, 2 * np.pi), rng.uniform(0.72, 0.98) * (radius + neighbour)
                centre = np.array([y + gap * np.sin(angle), x + gap * np.cos(angle)])
            if not (0 <= centre[0] < height and 0 <= centre[1] < width):
                continue
            distances = np.hypot(placed[:, 0] - centre[0], placed[:, 1] - centre[1])
            if (distances > 0.68 * (placed[:, 2] + radius)).all():
                placed = np.vstack([placed, [*centre, radius]])
                cells.append(shape_cell(rng, category, radius, centre, height, width))
                order_map[cells[-1].window][cells[-1].rho < 1] = len(cells)
                break
    kept, label_map = number_visible(order_map)
    return cells, label_map, {label: cells[order - 1].category for label, order in enumerate(kept, start=1)}


def number_visible(order_map: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The orders, from 1 on, that are seen in a map [H, W] of them, and their uint16 map, numbered without gaps."""
    visible = np.bincount(order_map.ravel())
    kept = [order for order in range(1, len(visible)) if visible[order] >= MIN_VISIBLE]
    new_label = np.zeros(len(visible), dtype=np.uint16)
    new_label[kept] = np.arange(1, len(kept) + 1)
    return kept, new_label[order_map]


def shape_cell(
    rng: np.random.Generator, category: int, radius: float, centre: np.ndarray, height: int, width: int
) -> Cell:
    """Compute the outline of a cell around centre (y, x) as a field rho on a window of the image."""
    stretch = rng.uniform(1.5, 1.95) if category == 1 else rng.uniform(1.0, 1.12)
    major, minor = min(radius * stretch, 28.0), radius / stretch
    reach = int(1.3 * max(major, minor)) + 4
    y, x = int(centre[0]), int(centre[1])
    window = (slice(max(y - reach, 0), min(y + reach, height)), slice(max(x - reach, 0), min(x + reach, width)))
    rows, columns = np.ogrid[window]
    dy, dx = (rows - centre[0]).astype(np.float32), (columns - centre[1]).astype(np.float32)
    angle, phases = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi, size=3)
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)  # [h, w]
    if category == 1:
        across = across + rng.uniform(-0.35, 0.35) * along**2 / major  # bent
        rho = (np.abs(along / major) ** 1.3 + np.abs(across / minor) ** 2) ** 0.6
    else:
        theta = np.arctan2(across, along)
        lobes, depth = (int(rng.integers(2, 5)), rng.uniform(0.14, 0.22)) if category == 2 else (2, 0.03)
        outline = 1 + depth * np.cos(lobes * theta + phases[0])
        outline += 0.45 * depth * np.cos((lobes + 1) * theta + phases[1]) + 0.012 * np.cos(7 * theta + phases[2])
        rho = np.hypot(along / major, across / minor) / outline
    return Cell(category, (major, minor), window, along, across, rho.astype(np.float32))


def smooth_noise(rng: np.random.Generator, height: int, width: int, sigma: float) -> np.ndarray:
    """Return [H, W] Gaussian noise of the given correlation length in pixels, with mean 0 and deviation 1."""
    shrink = max(1, int(sigma / 3))  # slow variations do not need every pixel
    small = rng.standard_normal((height // shrink + 2, width // shrink + 2), dtype=np.float32)
    small = cv2.GaussianBlur(small, (0, 0), sigma / shrink)
    noise = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)  # [H, W]
    return (noise - noise.mean()) / (noise.std() + 1e-6)


def _paint(cells: list[Cell], rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Paint cells from bottom to top on a hazy background, as a camera would see them: [H, W, 3] uint8."""
    haze = np.exp(0.45 * smooth_noise(rng, height, width, 28.0))[:, :, None]  # [H, W, 1]
    tint = np.array([0.030, 0.045, 0.075], dtype=np.float32) * rng.uniform(0.7, 1.3, size=3).astype(np.float32)
    canvas = haze * tint
    specks = np.zeros((height, width, 3), dtype=np.float32)
    count = int(rng.integers(10, 60))
    rows, columns = rng.integers(height, size=count), rng.integers(width, size=count)
    specks[rows, columns] = rng.gamma(1.5, 0.6, size=(count, 1)) * _CELL_COLOURS[rng.integers(3, size=count)]
    canvas += cv2.GaussianBlur(specks, (0, 0), rng.uniform(0.9, 1.3)) + 4 * cv2.GaussianBlur(specks, (0, 0), 3.5)

    fine, medium = smooth_noise(rng, height, width, 1.1), smooth_noise(rng, height, width, 3.0)
    staining, exposure = rng.uniform(0.35, 1.0), rng.uniform(0.95, 1.35)
    for cell in cells:
        _paint_cell(canvas, cell, rng, fine[cell.window], medium[cell.window], staining)

    y, x = np.ogrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    y0, x0 = rng.uniform(0.25, 0.75, size=2)
    light = 1.08 - rng.uniform(0.25, 0.8) * ((y - y0) ** 2 + (x - x0) ** 2)  # [H, W], brightest at (y0, x0)
    canvas = cv2.GaussianBlur(canvas * (exposure * light[:, :, None]).astype(np.float32), (0, 0), rng.uniform(0.5, 0.8))
    deviation = np.sqrt(np.float32(0.012**2) + np.float32(0.0022) * canvas)  # camera noise and photon noise
    canvas += deviation * rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.rint(255 * np.clip(canvas, 0, 1) ** np.float32(0.85)).astype(np.uint8)


def _paint_cell(
    canvas: np.ndarray,
    cell: Cell,
    rng: np.random.Generator,
    fine: np.ndarray,
    medium: np.ndarray,
    staining: float,
) -> None:
    """Blend one cell into canvas [H, W, 3]; fine and medium are [h, w] noise, staining 0 (grey) to 1 (full colour)."""
    rho, (major, minor) = cell.rho, cell.radii
    dome = np.sqrt(np.clip(1 - rho**2, 0, 1))
    rim = np.exp(-(((rho - 0.92) / 0.07) ** 2))
    if cell.category == 0:  # fine granules
        texture, nuclei = 0.62 + 0.14 * fine + 0.10 * medium, [(0.0, 0.0, 0.46, 0.46)]
    elif cell.category == 1:  # fibres along the cell
        fibres = np.sin(cell.across * (2 * np.pi / rng.uniform(3.2, 4.2)) + 0.9 * medium)
        texture, nuclei = 0.66 + 0.22 * fibres + 0.08 * fine, [(0.0, 0.0, 0.34, 0.46)]
    else:  # bright vesicles, and a nucleus in parts
        texture = 0.50 + 0.55 * np.clip(fine - 0.7, 0, 2) + 0.06 * medium
        turn = rng.uniform(0, 2 * np.pi)
        nuclei = [(0.24 * np.cos(turn + k), 0.24 * np.sin(turn + k), 0.27, 0.27) for k in (0.0, 2.1, 4.2)]
    mixed = rng.dirichlet(np.eye(3)[cell.category] * 3 + 0.6).astype(np.float32) @ _CELL_COLOURS
    grey = np.full(3, mixed.mean(), dtype=np.float32)
    colour = rng.uniform(0.65, 1.0) * (staining * mixed + (1 - staining) * grey)
    body = (texture * (0.35 + 0.65 * dome) + 0.22 * rim)[:, :, None] * colour  # [h, w, 3]

    shift = rng.uniform(-0.12, 0.12, size=2)
    stain = np.zeros_like(rho)
    for along, across, long, short in nuclei:
        u = (cell.along / major - along - shift[0]) / long
        v = (cell.across / minor - across - shift[1]) / short
        stain = np.maximum(stain, 1 / (1 + np.exp(np.clip(7 * (np.hypot(u, v) - 1), -30, 30))))
    chromatin = (0.80 + 0.16 * medium + 0.08 * fine)[:, :, None] * _NUCLEUS_COLOUR * rng.uniform(0.75, 1.05)
    body = body * (1 - 0.75 * stain[:, :, None]) + chromatin * (0.85 * stain[:, :, None])

    edge = cell.cover()[:, :, None]
    shadow = 1 - 0.4 * np.exp(-np.clip(rho - 1, 0, None) * (minor / 2.0))[:, :, None]  # a dark seam on cells below
    below = canvas[cell.window]
    canvas[cell.window] = below * shadow * (1 - edge) + edge * (body + 0.12 * below)
