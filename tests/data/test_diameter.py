"""Images at a common diameter of their objects: measured from annotations, kept by crops, and what is out of range."""

import math

import cv2
import numpy as np
import pytest
from detectron2.structures import BoxMode

from maskrcnn_plus.data.diameter import MeasuredInput, RandomDiameterCrop, ScaleToDiameter, median_diameter
from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.data.registration import label_map_annotations


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(0)  # noqa: NPY002 - Detectron2's augmentations draw from the global generator


def discs(diameters, side=400):
    """A label image of discs in a row, as images of nuclei of these diameters."""
    labels = np.zeros((side, side), np.uint16)
    y, x = np.mgrid[:side, :side] + 0.5
    left = 1
    for label, diameter in enumerate(diameters, start=1):
        labels[np.hypot(x - left - diameter / 2, y - side / 2) <= diameter / 2] = label
        left += diameter + 2
    return labels


def augment(augmentation, image, diameter):
    aug_input = MeasuredInput(image, object_diameter=diameter)
    transform = augmentation(aug_input)
    return aug_input.image, transform


def test_the_median_diameter_is_that_of_drawn_discs():
    annotations = label_map_annotations(discs([11, 31, 91]))
    assert median_diameter(annotations) == pytest.approx(31, rel=0.05)
    boxes = [{"bbox": each["bbox"], "bbox_mode": each["bbox_mode"]} for each in annotations]
    assert median_diameter(boxes) == pytest.approx(31, rel=0.05)
    x0, y0, x1, y1 = boxes[1]["bbox"]
    assert median_diameter([{"bbox": [x0, y0, x1 - x0, y1 - y0], "bbox_mode": BoxMode.XYWH_ABS}]) == pytest.approx(
        31, rel=0.05
    )


def test_crowds_and_empty_images_have_no_diameter():
    assert median_diameter([]) is None
    assert median_diameter([{"iscrowd": 1, "area": 100.0, "bbox": [0, 0, 10, 10]}]) is None


@pytest.mark.parametrize("diameter", [15, 31, 90])
def test_objects_have_the_diameter_that_was_asked_for(diameter):
    labels = discs([diameter] * 3)
    annotations = label_map_annotations(labels)
    scaled, _ = augment(ScaleToDiameter(22.0), labels.astype(np.float32), median_diameter(annotations))
    assert scaled.shape[0] == pytest.approx(400 * 22 / diameter, rel=0.06)
    crop = RandomDiameterCrop(640, 22.0, jitter=(1.0, 1.0))
    _, transform = augment(crop, labels.astype(np.float32), median_diameter(annotations))
    areas = np.bincount(transform.apply_segmentation(labels).ravel(), minlength=4)[1:]
    found = 2 * np.sqrt(areas.max() / math.pi)
    assert found == pytest.approx(22, rel=0.07)


def test_magnification_stays_within_its_limits_and_unknown_objects_take_the_factor():
    image = np.zeros((100, 200), np.float32)
    augmentation = ScaleToDiameter(20.0, limits=(0.5, 2.0), factor=1.5)
    assert augment(augmentation, image, 1000.0)[0].shape == (50, 100)
    assert augment(augmentation, image, 1.0)[0].shape == (200, 400)
    assert augment(augmentation, image, None)[0].shape == (150, 300)
    assert augment(ScaleToDiameter(20.0, max_size=64), image, 20.0)[0].shape == (32, 64)


def test_jitter_covers_its_range_and_no_more():
    image = np.zeros((600, 600), np.float32)
    augmentation = RandomDiameterCrop(60, 20.0, jitter=(0.5, 2.0))
    scales = [60 / augment(augmentation, image, 20.0)[1].crop[2] for _ in range(300)]
    assert 0.5 <= min(scales) < 0.56
    assert 1.8 < max(scales) <= 2.0
    without = [60 / augment(augmentation, image, None)[1].crop[2] for _ in range(300)]
    assert 0.5 <= min(without) < 0.6 < 1.7 < max(without) <= 2.0


def test_the_mapper_measures_the_annotations(tmp_path):
    labels = discs([40, 40, 40])
    cv2.imwrite(str(tmp_path / "a.png"), (labels > 0).astype(np.uint8) * 200)
    cv2.imwrite(str(tmp_path / "labels.png"), labels)
    record = {
        "file_name": str(tmp_path / "a.png"),
        "label_file_name": str(tmp_path / "labels.png"),
        "annotations": label_map_annotations(labels),
    }
    mapper = InstanceMapper(False, [ScaleToDiameter(20.0)])
    assert mapper(record)["image"].shape[-1] == pytest.approx(200, rel=0.06)
    assert mapper({"file_name": record["file_name"]})["image"].shape[-1] == 400
    pixels = np.zeros((400, 400, 3), np.uint8)
    assert mapper.make_example(mapper.prepare(pixels), 80.0)["image"].shape[-1] == 100


@pytest.mark.parametrize("make", [ScaleToDiameter, lambda *args, **kwargs: RandomDiameterCrop(32, *args, **kwargs)])
def test_what_is_out_of_range_is_named(make):
    for kwargs, name in (({"diameter": 0.0}, "diameter"), ({"diameter": 20.0, "limits": (2.0, 1.0)}, "limits")):
        with pytest.raises(ValueError, match=name):
            make(**kwargs)
