"""What kind of errors a model makes: objects that are missed, merged, split, poorly outlined or of the wrong class.

After Caicedo et al., "Evaluation of Deep Learning Strategies for Nucleus Segmentation in Fluorescence Images"
(Cytometry Part A, 2019), which counts missed, merged and split nuclei.

Shape shorthand: D detections and G ground-truth objects of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from maskrcnn_plus.masks.measure import rle_overlaps

FOUND, WRONG_CLASS, MERGED, SPLIT, POOR_OUTLINE = "found", "wrong class", "merged", "split", "poor outline"
MISSED, DOUBLED, SPURIOUS = "missed", "doubled", "spurious"
IGNORED = "ignored"

OBJECT_KINDS = (FOUND, MISSED, MERGED, SPLIT, POOR_OUTLINE, WRONG_CLASS)
"""What happened to an object."""

DETECTION_KINDS = (FOUND, SPURIOUS, MERGED, SPLIT, POOR_OUTLINE, WRONG_CLASS, DOUBLED)
"""What a detection is."""


def sort_errors(
    predicted: Sequence[dict[str, Any]],
    predicted_classes: Sequence[int],
    truth: Sequence[dict[str, Any]],
    truth_classes: Sequence[int],
    threshold: float = 0.5,
    ignorable: np.ndarray | None = None,
) -> tuple[list[str], list[str]]:
    """Sort the detections and the objects of one image. Two masks belong together from half of one of them on.

    A pair of the same class with an IoU of `threshold` is found, as many pairs as can be, each detection and object in
    one. Of the others, the first of these that fits:

    - wrong class: a pair with such an IoU, of two classes;
    - merged: a detection covers half of each of two or more objects, and those of them that are not found;
    - split: two or more detections lie by half in an object that is not found;
    - poor outline: a detection covers half of an object, or lies by half in it, and the IoU is too low;
    - doubled: a detection lies by half in an object that another detection has found;
    - missed objects and spurious detections: the rest.

    Args:
        predicted: D RLEs.
        predicted_classes: D class indices.
        truth: G RLEs of the same size, no crowd regions.
        truth_classes: G class indices.
        threshold: IoU in (0, 1].
        ignorable: [D] bool, detections that are no errors where they are no pair of an object, such as in a crowd.

    Returns:
        D of `DETECTION_KINDS`, or `IGNORED`, and G of `OBJECT_KINDS`.
    """
    ignorable = np.zeros(len(predicted), dtype=bool) if ignorable is None else ignorable
    if not predicted or not truth:
        return [IGNORED if ignored else SPURIOUS for ignored in ignorable], [MISSED] * len(truth)
    predicted, truth = list(predicted), list(truth)
    ious = rle_overlaps(predicted, truth)  # [D, G]
    inside = rle_overlaps(predicted, truth, of_first=True) >= 0.5  # [D, G]: of the detection in the object
    covers = rle_overlaps(truth, predicted, of_first=True).T >= 0.5  # [D, G]: of the object in the detection
    same = np.asarray(predicted_classes)[:, None] == np.asarray(truth_classes)[None]
    detections, objects = np.full(len(predicted), "", dtype=object), np.full(len(truth), "", dtype=object)

    for allowed, kind in ((same, FOUND), (~same, WRONG_CLASS)):
        free = (detections == "")[:, None] & (objects == "")[None]
        candidates = (ious >= threshold) & allowed & free
        # Of all matchings with the most pairs the one with the best; all IoUs together are worth less than one pair.
        first, second = linear_sum_assignment(candidates * (1 + ious / (2 * len(truth))), maximize=True)
        matched = candidates[first, second]
        detections[first[matched]] = objects[second[matched]] = kind
        _label(detections, ignorable, IGNORED)

    merging = covers.sum(axis=1) > 1  # [D]
    _label(objects, covers[merging].any(axis=0), MERGED)
    _label(detections, merging, MERGED)
    parts = inside & ~merging[:, None]
    splitting = (parts.sum(axis=0) > 1) & (objects == "")  # [G]
    _label(objects, splitting, SPLIT)
    _label(detections, parts[:, splitting].any(axis=1), SPLIT)
    pairs = (inside | covers) & (detections == "")[:, None] & (objects == "")[None]
    _label(objects, pairs.any(axis=0), POOR_OUTLINE)
    _label(detections, pairs.any(axis=1), POOR_OUTLINE)
    _label(detections, inside.any(axis=1), DOUBLED)
    _label(detections, True, SPURIOUS)
    _label(objects, True, MISSED)
    return detections.tolist(), objects.tolist()


def _label(kinds: np.ndarray, where: np.ndarray | bool, kind: str) -> None:
    """Give those without a kind yet one."""
    kinds[(kinds == "") & where] = kind
