"""Inference without `torch.no_grad` gives the same results as with it, for every part and up to the written files."""

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances

from maskrcnn_plus.config import get_config, skip_pretrained
from maskrcnn_plus.results import FORMATS, write_results

NAMES = [
    "mask_rcnn_plus",
    "variants/mask_scoring",
    "variants/boundary",
    "variants/point_rend",
    "variants/groie",
    "variants/cascade_rpn",
    "variants/iou_aware",
    "variants/soft_nms",
]


@pytest.mark.parametrize("name", NAMES)
def test_results_are_those_without_gradients(name):
    cfg = get_config(f"nuclei/{name}")
    skip_pretrained(cfg)
    cfg.dataset.max_objects = 12
    cfg.model.proposal_generator.pre_nms_topk = (60, 60)
    cfg.model.proposal_generator.post_nms_topk = (30, 30)
    cfg.model.max_covered, cfg.model.min_mask_area, cfg.model.dense_masks = 0.7, 1, True
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    for module in model.modules():
        if hasattr(module, "test_score_thresh"):
            module.test_score_thresh = 0.0
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    found = model([{"image": image, "height": 50, "width": 80}])[0]["instances"]
    with torch.no_grad():
        expected = model([{"image": image, "height": 50, "width": 80}])[0]["instances"]
    assert found.scores.requires_grad == (name != "variants/soft_nms")  # its steps choose, and have no gradient
    assert len(expected) > 0
    assert list(found.pred_masks_rle) == list(expected.pred_masks_rle)
    for field in ("pred_masks", "pred_classes", "scores"):
        assert torch.equal(found.get(field), expected.get(field))
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_results_with_gradients_are_written(tmp_path):
    masks = torch.zeros(3, 20, 30, dtype=torch.bool)
    masks[0, 2:9, 3:12] = masks[1, 8:15, 10:20] = True
    boxes, scores = torch.rand(3, 4) * 20, torch.rand(3)
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    contents = []
    for gradients in (False, True):
        instances = Instances((20, 30), pred_classes=torch.tensor([0, 1, 0]), pred_masks=masks)
        instances.pred_boxes = Boxes(boxes.clone().requires_grad_(gradients))
        instances.scores = scores.clone().requires_grad_(gradients)
        paths = write_results(tmp_path / str(gradients), "a", instances, image, formats=list(FORMATS))
        contents.append({name: path.read_bytes() for name, path in paths.items()})
    assert contents[0] == contents[1]
    assert {name.removesuffix(" image") for name in contents[0]} == set(FORMATS)
