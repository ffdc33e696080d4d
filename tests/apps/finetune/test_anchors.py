"""Anchors that follow from boxes, against IoUs computed box by box with anchors laid out over an image."""

import numpy as np
import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, pairwise_iou

from maskrcnn_plus.apps.finetune.anchors import WANTED, choose_anchors, coverage


def boxes(count, width, height, spread=0.1, seed=0):
    """Sizes around one."""
    rng = np.random.default_rng(seed)
    return np.array([width, height]) * np.exp(rng.normal(0, spread, (count, 2)))


@pytest.mark.parametrize("ratios", [[1.0], [0.5, 1.0, 2.0]])
def test_coverage_is_that_of_detectron2s_anchors(ratios):
    rng = np.random.default_rng(2)
    sizes, strides = [[12, 17], [24, 34], [48, 68]], [4, 8, 16]
    own = np.exp(rng.uniform(np.log(6), np.log(120), (200, 2)))
    places = rng.uniform(-0.5, 0.5, (200, 2))
    generator = DefaultAnchorGenerator(sizes=sizes, aspect_ratios=[ratios], strides=strides, offset=0.0)
    anchors = generator([torch.zeros(1, 1, 256 // stride, 256 // stride) for stride in strides])
    expected = []
    for box, place in zip(own, places, strict=True):
        covered = False
        for stride, grid in zip(strides, anchors, strict=True):
            # Anchors of each level lie as far from the box as the place says, in its own strides.
            centre = 128 + place * stride
            corners = torch.tensor([[*(centre - box / 2), *(centre + box / 2)]], dtype=torch.float32)
            covered |= bool(pairwise_iou(Boxes(corners), grid).max() >= 0.5)
        expected.append(covered)
    assert coverage(own, places, sizes, ratios, 4) == pytest.approx(np.mean(expected), abs=0.011)


def test_one_anchor_suffices_for_squares():
    found = choose_anchors(boxes(500, 40, 40), 4)
    assert found.per_place == 1
    assert found.coverage >= WANTED
    assert len(found.sizes) == 5


@pytest.mark.parametrize(("width", "height"), [(30, 75), (80, 32), (200, 20)])
def test_long_boxes_get_long_anchors(width, height):
    found = choose_anchors(boxes(500, width, height), 4)
    assert found.coverage >= WANTED
    assert any(ratio != 1 for ratio in found.ratios)


def test_more_of_all_sizes_are_covered_by_more_anchors_only():
    rng = np.random.default_rng(1)
    wide = np.exp(rng.uniform(np.log(12), np.log(250), (1000, 1))) * np.exp(rng.normal(0, 0.3, (1000, 2)))
    assert choose_anchors(wide, 4).per_place > choose_anchors(boxes(1000, 40, 40), 4).per_place


def test_what_cannot_be_covered_takes_no_more_anchors_than_help():
    found = choose_anchors(boxes(500, 3, 3), 4)
    assert found.coverage < 0.5
    assert found.per_place <= 9


def test_coarser_levels_have_larger_anchors():
    fine, coarse = choose_anchors(boxes(300, 100, 100), 4), choose_anchors(boxes(300, 100, 100), 8, levels=4)
    assert len(coarse.sizes) == 4
    assert coarse.sizes[0][0] >= 16 > fine.sizes[0][0] / 2
