"""The example of docs/own_parts.md, from a folder of the user's: it trains, predicts and keeps its rows of classes."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from maskrcnn_plus.checkpoints.classes import find_class_layers
from maskrcnn_plus.config import get_config
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.masks.label_masks import LabelMapMasks

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "own_parts.md"
FILES = re.findall(r"`(\w+\.py)`[^\n]*:\n\n```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, text in FILES:
        (tmp_path / name).write_text(text)
    yield get_config(str(tmp_path / "my_config.py"))
    sys.modules.pop("my_parts", None)


def test_it_is_short():
    assert [name for name, _ in FILES] == ["my_parts.py", "my_config.py"]
    assert sum(bool(line.strip()) for _, text in FILES for line in text.splitlines()) <= 25


def test_it_trains_and_predicts(config):
    torch.manual_seed(0)
    model = instantiate(config.model).train()
    label_map = torch.zeros(128, 128, dtype=torch.int32)
    label_map[20:60, 30:80] = 1
    objects = Instances((128, 128), gt_boxes=Boxes([[30, 20, 80, 60]]), gt_classes=torch.tensor([1]))
    objects.gt_masks = LabelMapMasks(label_map, torch.tensor([1]))
    with EventStorage():
        losses = model([{"image": (60 * (label_map[None] > 0)).expand(3, -1, -1).float(), "instances": objects}])
        sum(losses.values()).backward()
    assert {"loss_rpn_cls", "loss_cls", "loss_mask"} <= losses.keys()
    own = [*model.backbone.bottom_up.parameters(), *model.roi_heads.mask_head.parameters()]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in own)
    assert "roi_heads.mask_head.predictor.weight" in find_class_layers(model)

    config.dataset.score_threshold = 0.0
    found = Predictor(config, "random", device="cpu").predict(np.zeros((90, 120, 3), np.uint8))
    assert found.image_size == (90, 120)
    assert len(found) == len(found.pred_masks_rle) > 0
