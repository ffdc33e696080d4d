"""All that is said of a model, on objects and detections that were drawn by hand."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances

from maskrcnn_plus.evaluation.diagnosis import diagnose, judge_image
from maskrcnn_plus.masks.label_map import masks_to_rles
from maskrcnn_plus.masks.rle_masks import RLEMasks

SIZE = (80, 100)
NAMES = ["round", "long"]


def rle(box):
    mask = np.zeros(SIZE, bool)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = True
    return masks_to_rles(mask[None])[0]


def image(truth, found, crowds=()):
    """An image with objects (class, box) and detections (score, class, box)."""
    annotations = [
        {
            "category_id": category,
            "bbox": list(box),
            "bbox_mode": BoxMode.XYXY_ABS,
            "segmentation": rle(box),
            "iscrowd": int(crowd),
        }
        for entries, crowd in ((truth, False), (crowds, True))
        for category, box in entries
    ]
    instances = Instances(SIZE)
    instances.scores = torch.tensor([score for score, _, _ in found])
    instances.pred_classes = torch.tensor([category for _, category, _ in found], dtype=torch.long)
    instances.pred_boxes = Boxes(torch.tensor([box for _, _, box in found], dtype=torch.float32).reshape(-1, 4))
    instances.pred_masks_rle = RLEMasks([rle(box) for _, _, box in found], SIZE)
    record = {"file_name": "a.png", "image_id": "a", "height": SIZE[0], "width": SIZE[1], "annotations": annotations}
    return judge_image(record, instances)


A, B, C = (5, 5, 25, 25), (40, 5, 60, 25), (5, 50, 35, 70)
EMPTY = (70, 60, 80, 70)


def test_perfect_detections_are_perfect_everywhere():
    truth = [(0, A), (0, B), (1, C)]
    found = diagnose([image(truth, [(0.9, c, box) for c, box in truth]), image([], [])], NAMES)
    for task in ("bbox", "segm", "boundary"):
        assert found.figures[task]["AP"] == pytest.approx(100)
        assert found.figures[task]["AP-long"] == pytest.approx(100)
    assert found.confusion.tolist() == [[2, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert found.curve.best_f1 == 1
    assert found.curve.objects == 3
    assert [each.quality for each in found.images] == [1, 1]
    assert found.errors["objects"] == {"found": 3}
    assert found.sizes == {"small": 3, "medium": 0, "large": 0}


def test_the_threshold_is_where_f1_is_best_and_errors_are_counted_there():
    found = diagnose(
        [image([(0, A), (0, B), (1, C)], [(0.9, 0, A), (0.8, 0, B), (0.6, 0, C), (0.3, 0, EMPTY), (0.2, 1, EMPTY)])],
        NAMES,
    )
    # TP, FP at 0.9: 1, 0; at 0.8: 2, 0; at 0.6: 2, 1 -> F1 2/4, 4/5, 4/6
    assert found.threshold == pytest.approx(0.8)
    assert found.curve.scores == pytest.approx([0.9, 0.8, 0.6, 0.3, 0.2])
    assert found.curve.precision == pytest.approx([1, 1, 2 / 3, 0.5, 0.4])
    assert found.curve.recall == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert found.curve.best_f1 == pytest.approx(0.8)
    assert found.class_thresholds == {"round": pytest.approx(0.8)}  # the other class is never found
    assert found.errors == {"objects": {"found": 2, "missed": 1}, "detections": {"found": 2}}
    assert found.confusion.tolist() == [[2, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert found.tide["counts"]["Cls"] == 1
    assert found.calibration["num_detections"] == 5


def test_detections_in_crowds_count_neither_way():
    crowd = (60, 40, 100, 80)
    images = [image([(0, A)], [(0.9, 0, A), (0.8, 0, EMPTY)], crowds=[(0, crowd)])]
    found = diagnose(images, NAMES[:1])
    assert found.curve.objects == 1
    assert found.curve.scores == pytest.approx([0.9])
    assert found.confusion.tolist() == [[1, 0], [0, 0]]
    assert found.figures["segm"]["AP"] == pytest.approx(100)
    assert found.errors == {"objects": {"found": 1}, "detections": {"found": 1}}
    of_crowd_alone = diagnose([image([], [(0.8, 0, EMPTY), (0.7, 0, A)], crowds=[(0, crowd)])], NAMES[:1])
    assert of_crowd_alone.errors == {"objects": {}, "detections": {"spurious": 1}}


@pytest.mark.parametrize("truth", [[], [(0, A)]])
@pytest.mark.parametrize("detections", [[], [(0.7, 0, B)]])
def test_nothing_to_find_and_nothing_found(truth, detections):
    found = diagnose([image(truth, detections)], NAMES)
    assert found.threshold == 0.5
    assert found.curve.objects == len(truth)
    assert found.images[0].quality == (1 if not truth and not detections else 0)
    assert found.confusion.sum() == len(truth) + len(detections)
    assert np.isnan(found.figures["segm"]["AP"]) == (not truth)
