"""An export that changes nothing passes the gate; one that does is told object by object, and fails."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances

from maskrcnn_plus.apps.export_model.gate import compare
from maskrcnn_plus.evaluation.diagnosis import diagnose, judge_image
from maskrcnn_plus.masks.rle_masks import RLEMasks

SIZE = (40, 60)


def image_of(boxes, scores, classes=None):
    """An image with one object of class 0 at (5, 5, 25, 25), and rectangles as detections."""

    def masks(boxes):
        found = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(found, boxes, strict=True):
            mask[y0:y1, x0:x1] = True
        return found

    truth = [(5, 5, 25, 25)]
    annotation = {"category_id": 0, "bbox": [5, 5, 20, 20], "bbox_mode": 1, "iscrowd": 0}
    annotation["segmentation"] = next(iter(RLEMasks.from_dense(masks(truth))))
    record = {
        "file_name": "a/cells.png",
        "image_id": 1,
        "height": SIZE[0],
        "width": SIZE[1],
        "annotations": [annotation],
    }
    instances = Instances(
        SIZE,
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes or [0] * len(boxes), dtype=torch.int64),
        pred_masks_rle=RLEMasks.from_dense(masks(boxes)),
    )
    return diagnose([judge_image(record, instances)], ["cell", "other"])


def test_equal_models_differ_in_nothing():
    both = [image_of([(5, 5, 25, 25), (30, 5, 50, 20)], [0.9, 0.6]) for _ in range(2)]
    found = compare(*both, 0.5)
    assert found.drop == {"mask AP": 0, "box AP": 0}
    assert (found.paired, found.lost, found.new, found.changes) == (2, 0, 0, [])
    assert found.lowest_iou == found.same == 1
    assert found.largest_score_change == 0


def test_what_moves_fades_comes_and_goes():
    before = image_of([(5, 5, 25, 25), (30, 5, 50, 20), (30, 25, 50, 38)], [0.9, 0.6, 0.8])
    after = image_of([(5, 5, 25, 20), (30, 5, 50, 20), (2, 30, 20, 38)], [0.9, 0.4, 0.7])
    found = compare(before, after, 0.5)
    assert found.drop["mask AP"] == pytest.approx(0.4)  # of ten IoUs up to 0.95, to the six up to 0.75
    assert (found.paired, found.lost, found.new) == (2, 1, 1)
    kinds = {(each.kind, each.image, each.class_name) for each in found.changes}
    assert kinds == {(kind, "cells.png", "cell") for kind in ("lost", "new", "other")}
    moved, faded = sorted((each for each in found.changes if each.kind == "other"), key=lambda each: each.iou)
    assert (moved.iou, moved.score, moved.exported_score) == pytest.approx((0.75, 0.9, 0.9))
    assert (faded.iou, faded.score, faded.exported_score) == pytest.approx((1, 0.6, 0.4))
    assert found.changes[0].kind == "lost"  # of the higher score
    assert math.isnan(found.changes[0].iou)


def test_another_class_is_another_object():
    before, after = image_of([(5, 5, 25, 25)], [0.9]), image_of([(5, 5, 25, 25)], [0.9], [1])
    found = compare(before, after, 0.5)
    assert (found.paired, found.lost, found.new) == (0, 1, 1)
    assert found.drop["mask AP"] == pytest.approx(1)


def test_no_detections_at_all():
    found = compare(image_of([], []), image_of([], []), 0.5)
    assert found.worst_drop == found.paired == 0
    assert math.isnan(found.lowest_iou)
