"""The choice of covered detections against a loop over dense masks, and scenes of touching objects."""

import numpy as np
import pytest

from maskrcnn_plus.masks.label_map import masks_to_rles
from maskrcnn_plus.masks.measure import suppress_covered


def boxes_to_masks(boxes, height=40, width=60):
    masks = np.zeros((len(boxes), height, width), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def choose(masks, scores, classes=None, max_covered=0.5):
    classes = np.zeros(len(masks), dtype=int) if classes is None else np.asarray(classes)
    return suppress_covered(masks_to_rles(masks), np.asarray(scores), classes, max_covered).tolist()


def loop(masks, scores, classes, max_covered):
    kept = []
    for k in sorted(range(len(masks)), key=lambda k: (-scores[k], k)):
        covered = sum((masks[k] & masks[j]).sum() for j in kept if classes[j] == classes[k])
        if masks[k].sum() == 0 or covered / masks[k].sum() <= max_covered:
            kept.append(k)
    return sorted(kept)


@pytest.mark.parametrize("max_covered", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("number", [0, 1, 40])
def test_equals_a_loop_over_dense_masks(number, max_covered):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        corners = rng.integers(0, (50, 30), (number, 2))
        masks = boxes_to_masks(np.hstack([corners, corners + rng.integers(0, 20, (number, 2))]))
        masks &= rng.random(masks.shape) < 0.9
        scores = rng.permutation(number) // 2 / 50  # pairs of equal scores
        classes = rng.integers(0, 2, number)
        expected = loop(masks, scores, classes, max_covered)
        assert choose(masks, scores, classes, max_covered) == expected
        assert number < 40 or 0 < len(expected) < 40


PAIR = [(0, 0, 10, 10), (10, 0, 20, 10), (0, 0, 20, 10)]


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.9, 0.8, 0.7], [0, 1]),  # no one of them covers more than half of the pair, both do
        ([0.9, 0.5, 0.7], [0, 2]),  # one covers half of the pair, the pair all of the other
        ([0.5, 0.6, 0.9], [2]),
    ],
)
def test_a_detection_of_a_pair_goes_where_both_are_found(scores, kept):
    assert choose(boxes_to_masks(PAIR), scores) == kept


def test_a_dropped_detection_covers_nothing():
    """The second is on the first and is dropped; the third is on the second only."""
    masks = boxes_to_masks([(0, 0, 12, 10), (2, 0, 14, 10), (12, 0, 16, 10)])
    assert choose(masks, [0.9, 0.8, 0.7]) == [0, 2]


def test_classes_do_not_cover_each_other():
    masks = boxes_to_masks([PAIR[0]] * 3)
    assert choose(masks, [0.9, 0.8, 0.7], [0, 1, 0]) == [0, 1]
