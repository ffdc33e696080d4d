"""dataset.on_error=skip: an image that cannot be used is named and another takes its place, the same on every way."""

import copy
import itertools
import logging
import os

import numpy as np
import pytest
import tifffile
import torch
from detectron2.data import DatasetCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from PIL import Image

from maskrcnn_plus.data.augmentation import RandomRotate90
from maskrcnn_plus.data.check import DataError, checked_dataset
from maskrcnn_plus.data.copy_paste import CopyPasteMapper
from maskrcnn_plus.data.images import ImageReadError
from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.data.stream import SKIPPED, TrainingStream
from maskrcnn_plus.evaluation import COCOMaskEvaluator, MatchingEvaluator, ProposalRecallEvaluator
from maskrcnn_plus.training.skipped import SkippedImages

AUGMENTATIONS = [RandomRotate90(), T.RandomFlip(0.5)]


@pytest.fixture
def dataset(tmp_path):
    """Six images with a square; number 1 is truncated, number 4 has a NaN: both have good headers."""
    records = []
    for number in range(6):
        pixels = np.random.default_rng(number).random((20, 20), dtype=np.float32)
        path = tmp_path / f"{number}.tif"
        if number == 1:
            path = tmp_path / "1.png"
            Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(path)
            path.write_bytes(path.read_bytes()[:200])
        else:
            pixels[3, 3] = np.nan if number == 4 else 0
            tifffile.imwrite(path, pixels)
        square = {
            "bbox": [2, 2, 12, 12],
            "bbox_mode": 0,
            "category_id": 0,
            "segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]],
        }
        record = {"file_name": str(path), "image_id": number, "height": 20, "width": 20, "annotations": [square]}
        records.append(record)
    return records


def batches(dataset, count, mapper=None, num_workers=0, **options):
    mapper = mapper or InstanceMapper(True, AUGMENTATIONS, on_error="skip")
    stream = TrainingStream(dataset, total_batch_size=3, seed=2, **options)
    loader = build_detection_train_loader(
        dataset=stream, mapper=mapper, total_batch_size=3, aspect_ratio_grouping=False, num_workers=num_workers
    )
    return list(itertools.islice(iter(loader), count))


def seen(batches):
    return [
        [(example["image_id"], example["image"].double().sum().item(), example.get(SKIPPED)) for example in batch]
        for batch in batches
    ]


@pytest.mark.parametrize("paste", [False, True])
def test_positions_of_bad_images_are_filled_the_same_on_every_way(dataset, paste):
    mapper = InstanceMapper(True, AUGMENTATIONS, on_error="skip")
    if paste:
        mapper = CopyPasteMapper(mapper, dataset, probability=0.7)
    whole = batches(dataset, 8, mapper)
    assert [len(batch) for batch in whole] == [3] * 8
    assert {example["image_id"] for batch in whole for example in batch} == {0, 2, 3, 5}
    expected = seen(whole)
    assert seen(batches(dataset, 8, mapper, num_workers=2)) == expected
    assert seen(batches(dataset, 5, mapper, num_workers=1, start_iter=3)) == expected[3:]

    order = iter(TrainingStream(dataset, total_batch_size=3, seed=2))
    planned = [next(order)["image_id"] for _ in range(24)]
    shown = [example for batch in whole for example in batch]
    for number, example in zip(planned, shown, strict=True):
        assert example["image_id"] == number or number in (1, 4)
        files = {os.path.basename(file) for file, _ in example.get(SKIPPED, ())}
        assert files <= {"1.png", "4.tif"}
        if number in (1, 4):
            assert dataset[number]["file_name"] in {file for file, _ in example[SKIPPED]}


def test_good_images_are_those_of_a_run_that_skips_nothing(dataset):
    good = [dataset[number] for number in (0, 2, 3, 5)]
    assert seen(batches(good, 6)) == seen(batches(good, 6, InstanceMapper(True, AUGMENTATIONS)))
    assert all(SKIPPED not in record for record in dataset)


def test_raise_names_the_file_and_a_data_set_without_good_images_ends(dataset):
    with pytest.raises(ImageReadError, match=r"1\.png|4\.tif"):
        batches(dataset, 4, InstanceMapper(True, AUGMENTATIONS))
    with pytest.raises(ValueError, match=r"None of 2 images in turn.*(1\.png|4\.tif)"):
        batches([dataset[1], dataset[4]], 1)


def test_bad_annotations_are_skipped_too(dataset):
    bad = copy.deepcopy(dataset[0])
    bad["annotations"][0]["segmentation"] = [[1.0, 2, 3]]
    assert {example["image_id"] for batch in batches([bad, dataset[2]], 3) for example in batch} == {2}


def test_the_log_names_each_image_once_and_all_at_the_end(caplog):
    caplog.set_level(logging.WARNING)
    skipped = SkippedImages()
    skipped.report()
    assert not caplog.records
    for _ in range(3):
        skipped.add([("a.png", "a.png: truncated"), ("b.png", "b.png: NaN")])
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == ["a.png", "b.png"]
    skipped.report()
    last = caplog.records[-1].getMessage()
    assert last.startswith("2 images were left out")
    assert last.count("a.png: truncated") == last.count("b.png: NaN") == 1


class Exact:
    """Finds the square of every image."""

    def __call__(self, batch):
        found = []
        for example in batch:
            masks = torch.zeros(1, example["height"], example["width"], dtype=torch.bool)
            masks[:, 2:12, 2:12] = True
            boxes = Boxes(torch.tensor([[2.0, 2, 12, 12]]))
            instances = Instances(
                masks.shape[1:],
                pred_masks=masks,
                pred_boxes=boxes,
                scores=torch.ones(1),
                pred_classes=torch.zeros(1).long(),
            )
            proposals = Instances(masks.shape[1:], proposal_boxes=boxes, objectness_logits=torch.ones(1))
            found.append({"instances": instances, "proposals": proposals})
        return found


def test_an_evaluation_leaves_bad_images_out_and_names_them(dataset, caplog):
    (name := "skipping_val") in DatasetCatalog and DatasetCatalog.remove(name)
    gone = {**copy.deepcopy(dataset[2]), "file_name": dataset[2]["file_name"] + ".gone", "image_id": 6}
    DatasetCatalog.register(name, lambda: copy.deepcopy([*dataset, gone]))
    with pytest.raises(DataError, match=r"2\.tif\.gone"):
        checked_dataset(name, filter_empty=False)
    mapper = InstanceMapper(False, [T.ResizeShortestEdge(40)], on_error="skip")
    loader = build_detection_test_loader(
        dataset=checked_dataset(name, filter_empty=False, on_error="skip"), mapper=mapper, num_workers=1
    )
    evaluators = [
        evaluator(name, on_error="skip")
        for evaluator in (MatchingEvaluator, COCOMaskEvaluator, ProposalRecallEvaluator)
    ]
    for batch in loader:
        for evaluator in evaluators:
            evaluator.process(batch, Exact()(batch))
    for evaluator, figure in zip(
        evaluators, (("matching", "mAP"), ("segm", "AP"), ("box_proposals", "AR@100")), strict=True
    ):
        caplog.clear()
        results = evaluator.evaluate()
        assert results[figure[0]][figure[1]] in (1.0, pytest.approx(100.0))
        (said,) = [
            record.getMessage() for record in caplog.records if "left out of the evaluation" in record.getMessage()
        ]
        assert said.startswith("2 of 6 images")
        assert all(file in said for file in ("1.png", "4.tif"))
    DatasetCatalog.remove(name)
