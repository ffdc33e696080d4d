"""The sorting of errors on scenes drawn by hand, and its pairs against the matching metric."""

import numpy as np
import pytest

from maskrcnn_plus.evaluation.errors import DETECTION_KINDS, OBJECT_KINDS, sort_errors
from maskrcnn_plus.evaluation.matching import count_matches
from maskrcnn_plus.masks.label_map import masks_to_rles


def rles(*boxes):
    masks = np.zeros((len(boxes), 40, 60), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks_to_rles(masks)


LEFT, RIGHT, WHOLE = (0, 0, 10, 10), (10, 0, 20, 10), (0, 0, 20, 10)


@pytest.mark.parametrize(
    ("detections", "objects", "detection_kinds", "object_kinds"),
    [
        ([LEFT], [LEFT, RIGHT], ["found"], ["found", "missed"]),
        ([(0, 0, 21, 10)], [LEFT, RIGHT], ["merged"], ["merged", "merged"]),
        ([(0, 0, 18, 10)], [LEFT, RIGHT], ["found"], ["found", "merged"]),
        ([LEFT, RIGHT], [WHOLE], ["found", "doubled"], ["found"]),  # an IoU of exactly 0.5
        ([(0, 0, 9, 10), (9, 0, 18, 10)], [WHOLE], ["split", "split"], ["split"]),
        ([(0, 0, 9, 10)], [WHOLE], ["poor outline"], ["poor outline"]),  # half the detection in the object
        ([(0, 0, 25, 10)], [LEFT], ["poor outline"], ["poor outline"]),  # the object in the detection
        ([(6, 0, 16, 10)], [LEFT], ["spurious"], ["missed"]),  # 4 of 10 columns
        ([LEFT, (1, 1, 5, 5)], [LEFT], ["found", "doubled"], ["found"]),
        ([(40, 20, 50, 30)], [LEFT], ["spurious"], ["missed"]),
        ([], [LEFT], [], ["missed"]),
        ([LEFT], [], ["spurious"], []),
        ([], [], [], []),
    ],
)
def test_scenes(detections, objects, detection_kinds, object_kinds):
    found = sort_errors(rles(*detections), [0] * len(detections), rles(*objects), [0] * len(objects))
    assert found == (detection_kinds, object_kinds)


def test_the_wrong_class_is_an_error_of_its_own_and_comes_after_the_right_one():
    assert sort_errors(rles(LEFT), [1], rles(LEFT), [0]) == (["wrong class"], ["wrong class"])
    assert sort_errors(rles(LEFT, LEFT), [1, 0], rles(LEFT), [0]) == (["doubled", "found"], ["found"])


def test_of_two_detections_the_better_one_is_found():
    detections = rles((0, 0, 8, 10), (0, 0, 10, 9), (0, 0, 6, 10))
    assert sort_errors(detections, [0] * 3, rles(LEFT), [0])[0] == ["doubled", "found", "doubled"]


@pytest.mark.parametrize("seed", range(20))
def test_as_many_are_found_as_the_metric_matches(seed):
    rng = np.random.default_rng(seed)

    def scene(number):
        corners = rng.integers(0, (20, 10), (number, 2))
        return [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, rng.integers(3, 25, (number, 2)), strict=True)]

    objects = scene(8)
    detections = [tuple(np.add(box, rng.integers(-2, 3, 4)).clip(0, 60)) for box in objects[:5]] + scene(4)
    classes = rng.integers(0, 2, 9).tolist(), rng.integers(0, 2, 8).tolist()
    threshold = rng.choice([0.3, 0.5, 0.7])
    kinds, of_objects = sort_errors(rles(*detections), classes[0], rles(*objects), classes[1], threshold)
    counts = count_matches(rles(*detections), classes[0], rles(*objects), classes[1], [False] * 8, [threshold])
    assert kinds.count("found") == of_objects.count("found") == counts[0, 0]
    assert kinds.count("wrong class") == of_objects.count("wrong class")
    assert set(kinds) <= set(DETECTION_KINDS)
    assert set(of_objects) <= set(OBJECT_KINDS)


def test_ignorable_detections_are_no_errors():
    """Beside the found object: in a crowd, of another class in a crowd, and of nothing."""
    detections, objects = rles(LEFT, (40, 20, 50, 30), RIGHT, (40, 0, 50, 10)), rles(LEFT, RIGHT)
    ignorable = np.array([True, True, True, False])
    kinds = sort_errors(detections, [0, 0, 1, 0], objects, [0, 0], ignorable=ignorable)
    assert kinds == (["found", "ignored", "ignored", "spurious"], ["found", "missed"])
