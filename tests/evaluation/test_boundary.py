"""Boundaries of masks against erosion by hand, and their AP."""

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from scipy.ndimage import binary_erosion

from maskrcnn_plus.evaluation.boundary import boundary_precision_and_recall, boundary_rles
from maskrcnn_plus.evaluation.coco_api import precision_and_recall
from maskrcnn_plus.masks.label_map import masks_to_rles


def encode(mask):
    return masks_to_rles(np.asarray(mask, dtype=bool)[None])[0]


@pytest.mark.parametrize("size", [(30, 40), (200, 150), (7, 500)])
def test_a_boundary_is_what_erosion_takes_away(size):
    rng = np.random.default_rng(0)
    masks = [np.zeros(size, bool) for _ in range(4)]
    masks[0][:] = True
    masks[1][2 : size[0] // 2, 3 : size[1] // 2] = True
    masks[2] = rng.random(size) < 0.9
    width = max(round(0.02 * float(np.hypot(*size))), 1)
    found = boundary_rles([encode(mask) for mask in masks])
    for mask, rle in zip(masks, found, strict=True):
        expected = mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=width)  # outside the image is no mask
        assert np.array_equal(coco_mask.decode(rle).astype(bool), expected)
    assert boundary_rles([]) == []


def dataset(*boxes, size=(100, 100)):
    annotations = []
    for number, (x, y, w, h) in enumerate(boxes, start=1):
        mask = np.zeros(size, bool)
        mask[y : y + h, x : x + w] = True
        common = {"image_id": 1, "category_id": 0, "bbox": [x, y, w, h], "area": w * h, "segmentation": encode(mask)}
        annotations.append({"id": number, "iscrowd": 0, "score": 1 / number, **common})
    images = [{"id": 1, "height": size[0], "width": size[1]}]
    return {"images": images, "categories": [{"id": 0, "name": "a"}], "annotations": annotations}


def test_a_large_object_must_earn_it_at_its_outline():
    """A square of 60 px found 3 px smaller all around: an IoU of 0.81, of which boundaries of 3 px share nothing."""
    truth, found = dataset((20, 20, 60, 60)), dataset((23, 23, 54, 54))["annotations"]
    precision = precision_and_recall(truth, found, "segm", 100)[0]
    boundary, recall = boundary_precision_and_recall(truth, found, 100)
    assert precision[0, :, 0, 0].mean() == pytest.approx(1)
    assert boundary[0, :, 0, 0].mean() == 0
    assert recall[0, 0, 0] == 0


def test_perfect_and_missing_detections():
    truth = dataset((20, 20, 60, 60), (5, 5, 8, 8))
    precision, recall = boundary_precision_and_recall(truth, truth["annotations"], 100)
    assert (precision[:, :, 0, 0] == 1).all()
    assert (recall[:, 0, 0] == 1).all()
    precision, recall = boundary_precision_and_recall(truth, [], 100)
    assert (precision[:, :, 0, 0] == 0).all()
    precision, _ = boundary_precision_and_recall({**truth, "annotations": []}, truth["annotations"], 100)
    assert (precision == -1).all()


def test_with_masks_for_boundaries_it_is_cocos_evaluation(monkeypatch):
    """Crowds, equal scores, sizes of all ranges, more detections than the limit, images without either."""
    rng = np.random.default_rng(3)
    images, truth, found = [], [], []
    for image in range(1, 6):
        images.append({"id": image, "height": 300, "width": 300})
        for number in range(0 if image == 2 else 12):
            x, y = rng.integers(0, 180, 2)
            w, h = rng.integers(4, 120, 2)
            for entries, skipped in ((truth, image == 3 or number > 9), (found, image == 4)):
                shift = rng.integers(-3, 4, 4) if entries is found else 0
                x0, y0, w0, h0 = np.maximum(np.array([x, y, w, h]) + shift, [0, 0, 1, 1]).tolist()
                mask = np.zeros((300, 300), bool)
                mask[y0 : y0 + h0, x0 : x0 + w0] = True
                if not skipped:
                    entry = {"id": len(entries) + 1, "image_id": image, "category_id": int(number % 2)}
                    entry |= {"bbox": [x0, y0, w0, h0], "area": w0 * h0, "segmentation": encode(mask)}
                    score = float(rng.integers(1, 6)) / 5
                    entries.append({**entry, "iscrowd": int(entries is truth and number == 5), "score": score})
    categories = [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]
    data = {"images": images, "categories": categories, "annotations": truth}
    monkeypatch.setattr("maskrcnn_plus.evaluation.boundary.boundary_rles", list)
    for limit in (100, 3):
        expected = precision_and_recall(data, found, "segm", limit, "pycocotools")
        found_here = boundary_precision_and_recall(data, found, limit)
        assert 0 < expected[0][expected[0] > -1].mean() < 1
        for ours, theirs in zip(found_here, expected[:2], strict=True):
            np.testing.assert_array_equal(ours, theirs)
