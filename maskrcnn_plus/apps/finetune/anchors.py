"""As few anchors as cover the boxes of a data set."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WANTED = 0.98
_IOU = 0.5
_SEED = 0
_BASES = (8, 10, 12, 14, 16, 20, 24, 28, 32)  # smallest size, for a stride of 4
_RATIOS = {1: (1.0,), 3: (0.5, 1.0, 2.0), 5: (0.33, 0.5, 1.0, 2.0, 3.0)}
_KINDS = ((1, 1), (2, 1), (1, 3), (1, 5), (2, 3), (3, 3))  # sizes an octave, number of ratios
_NEGLIGIBLE = 0.01
_SAMPLE = 4000


class Anchors(NamedTuple):
    """Anchors of a feature pyramid.

    Attributes:
        sizes: square roots of the areas in pixels, a list a level.
        ratios: height / width, of all levels.
        coverage: part of the boxes that some anchor overlaps with an IoU of at least 0.5.
    """

    sizes: list[list[float]]
    ratios: list[float]
    coverage: float

    @property
    def per_place(self) -> int:
        """Anchors at a place."""
        return len(self.sizes[0]) * len(self.ratios)


def choose_anchors(box_sizes: np.ndarray, first_stride: int, levels: int = 5) -> Anchors:
    """Choose as few anchors a place as cover 98% of the boxes, else as few as come within 1% of the most.

    Each level has twice the stride of the one before, and anchors twice as large. Boxes lie anywhere
    between the places of anchors.

    Args:
        box_sizes: [N, 2] width and height in pixels of the network's input.
        first_stride: of the finest level, pixels.
        levels: their number.
    """
    generator = np.random.default_rng(_SEED)
    boxes = box_sizes[generator.permutation(len(box_sizes))[:_SAMPLE]]
    places = generator.uniform(-0.5, 0.5, size=(len(boxes), 2))  # of centres, in strides
    kinds = []
    for scales, number in _KINDS:
        found = []
        for ratios, base in itertools.product((_RATIOS[number], _own_ratios(boxes, number)), _BASES):
            octaves = [base * first_stride / 4 * 2**level for level in range(levels)]
            sizes = [[round(size * 2 ** (part / scales)) for part in range(scales)] for size in octaves]
            found.append(Anchors(sizes, list(ratios), coverage(boxes, places, sizes, ratios, first_stride)))
        kinds.append(max(found, key=lambda anchors: anchors.coverage))
        if kinds[-1].coverage >= WANTED:
            break
    wanted = min(WANTED, max(anchors.coverage for anchors in kinds) - _NEGLIGIBLE)
    return next(anchors for anchors in kinds if anchors.coverage >= wanted)


def _own_ratios(boxes: np.ndarray, number: int) -> tuple[float, ...]:
    """Ratios in the middle of equal parts of the boxes, for objects that are all long."""
    shares = (np.arange(number) + 0.5) / number
    return tuple(np.quantile(boxes[:, 1] / boxes[:, 0], shares).round(2).clip(0.05, 20).tolist())


def coverage(
    boxes: np.ndarray,
    places: np.ndarray,
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
    first_stride: int,
) -> float:
    """Part of the boxes that an anchor overlaps with an IoU of at least 0.5.

    Args:
        boxes: [N, 2] width and height.
        places: [N, 2] x and y of the centre of each box from the nearest place of an anchor, in strides.
        sizes, ratios: as of `Anchors`.
        first_stride: of the finest level, pixels.
    """
    covered = np.zeros(len(boxes), dtype=bool)
    for level, own in enumerate(sizes):
        offsets = np.abs(places) * first_stride * 2**level  # [N, 2]
        for size in own:
            for ratio in ratios:
                anchor = np.array([size / ratio**0.5, size * ratio**0.5])
                # Overlap of two intervals whose centres are `offsets` apart.
                shared = np.minimum(np.minimum(boxes, anchor), (boxes + anchor) / 2 - offsets).clip(min=0).prod(axis=1)
                union = boxes.prod(axis=1) + anchor.prod() - shared
                covered |= shared >= _IOU * union
    return float(covered.mean()) if len(boxes) else 1.0
