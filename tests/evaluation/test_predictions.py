"""Gathering over processes, with two real ones."""

import json

import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from fork_server import Script

from maskrcnn_plus.evaluation import COCOMaskEvaluator, MatchingEvaluator
from maskrcnn_plus.evaluation.predictions import gather_images, predicted_rles
from maskrcnn_plus.masks.label_map import masks_to_rles
from maskrcnn_plus.masks.rle_masks import encode_masks

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
    (tmp_path / "worker.py").write_text(WORKER)
    workers = [Script(tmp_path / "worker.py", rank, tmp_path / "rendezvous") for rank in range(2)]
    results = []
    for worker in workers:
        output = worker.communicate()
        assert worker.returncode == 0, output
        results.append(json.loads(output.rsplit("RESULT", 1)[1].splitlines()[0]))
    # Images 0, 2 and 4 hit; 1 and 3 are one FP and one FN each.
    assert results[0]["matching"]["AP50"] == pytest.approx(3 / 7)
    assert results[0]["matching"]["image_AP50"] == pytest.approx(3 / 5)
    assert results[1] == {}


def test_gather_orders_as_the_data_set_and_names_what_is_missing():
    truth = {image_id: {} for image_id in ("b", "a", 3)}
    assert list(gather_images({3: 1, "a": 2, "b": 3}, truth).items()) == [("b", 3), ("a", 2), (3, 1)]
    with pytest.raises(ValueError, match=r"2 of 3 images.*\['b', 3\]"):
        gather_images({"a": 0}, truth)


def random_instances(seed, count=12, height=40, width=50):
    random = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, height // 5, width // 5, generator=random).repeat_interleave(5, 1).repeat_interleave(5, 2)
    masks = masks > torch.rand(count, 1, 1, generator=random)
    masks[::5] = False
    return Instances(
        (height, width),
        pred_boxes=Boxes(torch.tensor([[1.0, 2, 30, 20]]).repeat(count, 1)),
        scores=torch.randint(1, 20, (count,), generator=random) / 20,
        pred_classes=torch.randint(0, 2, (count,), generator=random),
        pred_masks=masks,
    )


def test_a_malformed_predicted_rle_names_image_and_detection():
    good, bad = {"size": [2, 2], "counts": [0, 4]}, {"size": [2, 2], "counts": [0, 5]}
    truth = {"file_name": "x.png", "height": 2, "width": 2}
    assert predicted_rles(Instances((2, 2), pred_masks_rle=[good]), truth) == [{"size": [2, 2], "counts": "04"}]
    with pytest.raises(ValueError, match=r"x\.png: pred_masks_rle: .*RLE 1 .*corrupt"):
        predicted_rles(Instances((2, 2), pred_masks_rle=[good, bad]), truth, [0])


@pytest.mark.parametrize("indices", [None, [], [3], [7, 0, 3]])
def test_dense_masks_and_rles_are_encoded_alike(indices):
    dense = random_instances(0)
    truth = {"file_name": "x.png", "height": 40, "width": 50}
    expected = masks_to_rles(dense.pred_masks if indices is None else dense.pred_masks[indices])
    for instances in (dense, encode_masks(dense), Instances((40, 50), pred_masks_rle=masks_to_rles(dense.pred_masks))):
        assert predicted_rles(instances, truth, indices) == expected
    with pytest.raises(ValueError, match=r"x\.png: .*\[40, 50\].*\[80, 50\].*scale"):
        predicted_rles(encode_masks(dense), {**truth, "height": 80})


@pytest.mark.parametrize("evaluator", [COCOMaskEvaluator, MatchingEvaluator])
def test_all_figures_of_rles_are_those_of_dense_masks(evaluator):
    truths, name = [random_instances(seed) for seed in range(4)], f"rle_and_dense_{evaluator.__name__}"
    entries = [
        {
            "file_name": f"{index}.png",
            "image_id": index,
            "height": 40,
            "width": 50,
            "annotations": [
                {"bbox": [1, 2, 30, 20], "bbox_mode": BoxMode.XYXY_ABS, "category_id": category, "segmentation": rle}
                for category, rle in zip(each.pred_classes.tolist(), masks_to_rles(each.pred_masks), strict=True)
                if coco_mask.area(rle)
            ],
        }
        for index, each in enumerate(truths)
    ]
    DatasetCatalog.register(name, lambda: entries)
    MetadataCatalog.get(name).thing_classes = ["a", "b"]
    try:
        dense = [Instances.cat([truth[1:], random_instances(index + 50)]) for index, truth in enumerate(truths)]
        for instances in dense:
            shifted = [mask.roll(shift % 4, 0) for shift, mask in enumerate(instances.pred_masks)]
            instances.pred_masks = torch.stack(shifted)
        figures = []
        for encode in (lambda instances: instances, encode_masks):
            judge = evaluator(name)
            judge.reset()
            judge.process([{"image_id": k} for k in range(4)], [{"instances": encode(each)} for each in dense])
            figures.append(judge.evaluate())
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    values = [value for of_task in figures[0].values() for value in of_task.values()]
    assert repr(figures[0]) == repr(figures[1])  # bit for bit; NaN included
    assert len(set(values)) > 5  # the scene tells figures apart
