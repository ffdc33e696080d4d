"""Whether two predictions of an image have the same objects, in any order."""

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_plus.masks.measure import rle_areas


def measure(found, expected):
    """How far each expected object is from its nearest of the same class.

    Args:
        found, expected: objects with boxes, scores, classes and RLEs; at least one each.

    Returns:
        [N, 3]: differences of box (pixels) and score, and IoU of the masks, 1 of empty ones.
    """
    boxes, others = np.asarray(found.pred_boxes.tensor), np.asarray(expected.pred_boxes.tensor)
    distance = np.abs(others[:, None] - boxes[None]).max(2)  # [N, M]
    distance[np.asarray(expected.pred_classes)[:, None] != np.asarray(found.pred_classes)[None]] = np.inf
    nearest = distance.argmin(1)
    masks = list(expected.pred_masks_rle)
    ious = coco_mask.iou(masks, list(found.pred_masks_rle), [0] * len(found))[np.arange(len(masks)), nearest]
    scores = np.abs(np.asarray(expected.scores) - np.asarray(found.scores)[nearest])
    return np.stack([distance.min(1), scores, np.maximum(ious, rle_areas(masks) == 0)], axis=1)


def assert_same(found, expected, masks=0.999):
    """Lists of predictions agree: boxes to 0.01 px, scores to 1e-4, and of the masks a share to an IoU of 0.99."""
    assert [len(each) for each in found] == [len(each) for each in expected]
    measured = [measure(*pair) for pair in zip(found, expected, strict=True) if len(pair[1])]
    boxes, scores, ious = np.concatenate(measured).T
    assert boxes.max() < 0.01
    assert scores.max() < 1e-4
    assert (ious >= 0.99).mean() >= masks
