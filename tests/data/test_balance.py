"""Repeats of images with rare classes, against the paper's formula image by image."""

import numpy as np
import pytest
from detectron2.data.samplers import RepeatFactorTrainingSampler

from maskrcnn_plus.data.check import repeat_rare


def records(classes):
    return [{"image_id": i, "annotations": [{"category_id": c} for c in found]} for i, found in enumerate(classes)]


@pytest.mark.parametrize("threshold", [0.05, 0.3, 1.0])
def test_repeats_are_detectron2s_factors_rounded_up_or_down(threshold):
    rng = np.random.default_rng(3)
    data = records([rng.choice(5, size=rng.integers(1, 4), p=[0.6, 0.25, 0.1, 0.04, 0.01]) for _ in range(300)])
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(data, threshold).numpy()
    repeats = np.bincount([entry["image_id"] for entry in repeat_rare(data, threshold)], minlength=len(data))
    assert (np.floor(factors) <= repeats).all()
    assert (repeats <= np.ceil(factors)).all()
    assert repeats.sum() == pytest.approx(factors.sum(), rel=0.05)


def test_images_without_objects_and_a_threshold_of_nothing_change_nothing():
    data = records([[0], [], [1, 1], []])
    assert repeat_rare(data, 0.0) == data
    assert [entry["image_id"] for entry in repeat_rare(data, 1.0) if not entry["annotations"]] == [1, 3]
    assert repeat_rare([], 0.5) == []
