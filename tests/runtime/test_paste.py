"""Masks pasted in NumPy are those of the reference in PyTorch."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from maskrcnn_plus.ops.paste_masks_rle_reference import paste_masks_rle_reference
from maskrcnn_plus.runtime.paste import paste_masks


@pytest.mark.parametrize("rule", ["detectron2", "torchvision"])
def test_pixels_are_those_of_the_reference(rule):
    rng, (height, width) = np.random.default_rng(0), (57, 83)
    corners = np.sort(rng.random((60, 2, 2)) * (width, height), axis=1)
    corners[:5] = rng.integers(0, 50, (5, 1, 2)) + np.array([[0, 0], [7, 5]])  # whole pixels
    corners[5:10] = [[0, 0], [width, height]]
    boxes = corners.reshape(-1, 4).astype(np.float32)
    boxes[10:14, 2] = boxes[10:14, 0] + 0.3  # thin
    masks = rng.random((60, 14, 14), dtype=np.float32)
    found = paste_masks(masks, boxes, height, width, rule=rule)
    tensors = torch.from_numpy(masks), torch.from_numpy(boxes)
    expected = paste_masks_rle_reference(*tensors, height, width, rule=rule)
    pixels = coco_mask.decode(found) != coco_mask.decode(expected)
    assert pixels.mean() < 1e-5  # a value of nearly the threshold
    assert coco_mask.area(found).max() > 500


def test_nothing():
    assert paste_masks(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), 5, 5) == []
    (empty,) = paste_masks(np.zeros((1, 28, 28), np.float32), np.array([[0, 0, 3, 3]], np.float32), 5, 5)
    assert coco_mask.area(empty) == 0
