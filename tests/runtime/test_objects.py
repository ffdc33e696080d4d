"""Objects in NumPy do for the writers what Detectron2's Instances do."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes

from maskrcnn_plus.masks.rle_masks import RLEMasks
from maskrcnn_plus.results import FORMATS, write_results
from maskrcnn_plus.results.predictions import Predictions
from maskrcnn_plus.runtime import Objects
from maskrcnn_plus.runtime.objects import ArrayBoxes


def make(count):
    rng = np.random.default_rng(0)
    dense = np.zeros((count, 40, 60), dtype=bool)
    for k in range(count):
        dense[k, 3 * k : 3 * k + 9, 5 * k : 5 * k + 11] = True
    boxes = rng.random((count, 4), dtype=np.float32) * 30
    scores = np.sort(rng.random(count, dtype=np.float32))[::-1].copy()
    facts = {"class_names": ["a", "b"], "category_ids": [7, 9], "pixel_size": 0.5}
    common = {"pred_masks_rle": RLEMasks.from_dense(dense), **facts}
    arrays = {"scores": scores, "pred_classes": np.arange(count) % 2}
    objects = Objects((40, 60), pred_boxes=ArrayBoxes(boxes), **arrays, **common)
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    return objects, Predictions((40, 60), pred_boxes=Boxes(torch.from_numpy(boxes)), **tensors, **common)


@pytest.mark.parametrize("count", [0, 1, 6])
def test_files_are_the_same(count, tmp_path):
    image = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for name, each in zip(("numpy", "torch"), make(count), strict=True):
        write_results(tmp_path / name, "a", each, image, formats=list(FORMATS))
    files = {path.relative_to(tmp_path / "numpy") for path in (tmp_path / "numpy").rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "torch") for path in (tmp_path / "torch").rglob("*") if path.is_file()}
    assert len(files) > len(FORMATS)
    for file in files:
        assert (tmp_path / "numpy" / file).read_bytes() == (tmp_path / "torch" / file).read_bytes() or file.suffix in (
            ".zip",
            ".xml",
        ), file


def test_parts_know_their_image():
    objects, _ = make(6)
    for part, indices in (
        (objects[2:4], [2, 3]),
        (objects[np.array([5, 0])], [5, 0]),
        (objects[objects.scores < 0], []),
    ):
        assert len(part) == len(indices)
        assert part.class_names == ["a", "b"]
        assert part.image_size == (40, 60)
        np.testing.assert_array_equal(part.pred_boxes.tensor, objects.pred_boxes.tensor[indices])
        assert list(part.pred_masks_rle) == [objects.pred_masks_rle[k] for k in indices]
    with pytest.raises(AttributeError, match="these objects have no 'keypoints'"):
        _ = objects.keypoints
