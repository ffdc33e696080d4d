"""Whether a shipped model has learned something so similar that a training does better to start from it."""

from __future__ import annotations

import re

import numpy as np

from maskrcnn_plus.apps.finetune.plan import Plan
from maskrcnn_plus.data.statistics import Statistics
from maskrcnn_plus.zoo import SCHEME, read_table

NUCLEI = "nuclei"
"""Name of the shipped model of nuclei."""

_FEWEST, _LARGEST = 10, 1 / 8  # objects of the median image; median diameter, as a part of the shorter side
_FILL, _ELONGATION = (0.6, 0.9), 1.5  # of a box by its mask: an ellipse pi / 4, a rectangle 1; longer by shorter side


def find_shipped(plan: Plan, data: Statistics) -> tuple[str, str] | None:
    """The shipped model to start from, and why.

    The model of nuclei, where all classes are called so; or where there is one class of many small round objects in
    grey images, which are then micrographs of nuclei, of other parts of cells, or of cells. In colour the same may be
    fruit on a belt, so that there the class must be called a cell. Otherwise none: weights of a backbone alone do less
    harm than those of another domain.

    Args:
        plan: where the user has decided on weights or a model, there is none.
        data: figures of the training images, with their pixels.

    Returns:
        A source of weights and the reason, or None.
    """
    given = any(map(plan.is_given, ("train.init_checkpoint", "model.backbone")))
    if given or NUCLEI not in read_table() or set(data.pixels.channels) - {1, 3}:
        return None
    source, names = f"{SCHEME}{NUCLEI}", ", ".join(data.class_names)
    if all(re.search(r"nucle(us|i)\b", _words(name)) for name in data.class_names):
        return source, f"shipped for nuclei, which these are ({names})"
    if len(data.class_names) > 1 or not _are_small_and_round(data):
        return None
    of_median = f"{np.median(_counts(data)):.0f} small round objects of one class in the median image"
    if re.search(r"\bcells?\b", _words(names)):
        return source, f"shipped for nuclei, which these resemble ({names}, {of_median})"
    if set(data.pixels.channels) == {1} or data.pixels.mean_saturation < 0.02:
        return source, f"shipped for nuclei, which these resemble (grey images, {of_median})"
    return None


def _are_small_and_round(data: Statistics) -> bool:
    sides = data.image_sizes.min(axis=1)[data.image_index]  # [N]
    elongation = data.box_sizes.max(axis=1) / np.maximum(data.box_sizes.min(axis=1), 1)
    fill = float(np.median(data.fill))
    return bool(
        np.median(_counts(data)) >= _FEWEST
        and np.median(data.diameters / sides) <= _LARGEST
        and np.median(elongation) <= _ELONGATION
        and _FILL[0] <= fill <= _FILL[1]
    )


def _counts(data: Statistics) -> np.ndarray:
    """Objects of the images that have some, int64."""
    return data.objects_per_image[data.objects_per_image > 0]


def _words(name: str) -> str:
    """A class name in small letters, its words apart."""
    return re.sub(r"[\W_\d]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).lower()
