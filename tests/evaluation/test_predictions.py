"""Gathering over processes, with two real ones."""

import json
import subprocess
import sys

import pytest
from detectron2.structures import Instances

from maskrcnn_plus.evaluation.predictions import gather_images, predicted_rles

WORKER = """
import json, sys
import torch.distributed as dist
from detectron2.data import DatasetCatalog
from detectron2.structures import Instances
import torch
from maskrcnn_plus.evaluation import MatchingEvaluator

rank, rendezvous = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
square = {"segmentation": {"size": [4, 4], "counts": [0, 8, 8]}, "category_id": 0, "iscrowd": 0}
entry = {"file_name": "x.png", "height": 4, "width": 4, "annotations": [square]}
DatasetCatalog.register("two_processes", lambda: [{**entry, "image_id": i} for i in range(5)])
evaluator = MatchingEvaluator("two_processes", thresholds=(0.5,))
evaluator.reset()
for image_id in ([0, 1, 2], [2, 3, 4])[rank]:  # both see image 2
    instances = Instances((4, 4), scores=torch.ones(1), pred_classes=torch.zeros(1, dtype=torch.long))
    instances.pred_masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    instances.pred_masks[:, :, image_id % 2 : image_id % 2 + 2] = True  # IoU 1 or 1 / 3
    evaluator.process([{"image_id": image_id}], [{"instances": instances}])
print("RESULT", json.dumps(evaluator.evaluate()), flush=True)
dist.destroy_process_group()
"""


def test_two_processes_count_every_image_once(tmp_path):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "rendezvous")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    results = []
    for worker in workers:
        output, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
        results.append(json.loads(output.rsplit("RESULT", 1)[1]))
    # Images 0, 2 and 4 hit; 1 and 3 are one FP and one FN each.
    assert results[0]["matching"]["AP50"] == pytest.approx(3 / 7)
    assert results[0]["matching"]["image_AP50"] == pytest.approx(3 / 5)
    assert results[1] == {}


def test_gather_orders_as_the_data_set_and_names_what_is_missing():
    truth = {image_id: {} for image_id in ("b", "a", 3)}
    assert list(gather_images({3: 1, "a": 2, "b": 3}, truth).items()) == [("b", 3), ("a", 2), (3, 1)]
    with pytest.raises(ValueError, match=r"2 of 3 images.*\['b', 3\]"):
        gather_images({"a": 0}, truth)


def test_a_malformed_predicted_rle_names_image_and_detection():
    good, bad = {"size": [2, 2], "counts": [0, 4]}, {"size": [2, 2], "counts": [0, 5]}
    instances = Instances((2, 2), pred_masks_rle=[good, bad])
    truth = {"file_name": "x.png", "height": 2, "width": 2}
    assert predicted_rles(instances, truth, [0]) == [{"size": [2, 2], "counts": "04"}]
    with pytest.raises(ValueError, match=r"x\.png: pred_masks_rle\[1\].*corrupt"):
        predicted_rles(instances, truth, [0, 1])
