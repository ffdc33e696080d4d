"""A model whose objects are known beforehand, for the configs of the tools' tests, and tools/predict.py with it."""

import importlib

import pytest
import torch

GREY_VALUES = """
import torch
from detectron2.config import LazyCall as L
from detectron2.structures import Boxes, Instances
from torch import nn

from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.data.registration import register_label_maps


class GreyValues(nn.Module):
    def __init__(self, ignored=0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.ignored = ignored

    def forward(self, batch):
        image = batch[0]["image"][0]
        values = [v for v in image.unique().tolist() if v > 0]
        instances = Instances(image.shape)
        masks = torch.zeros(len(values), *image.shape, dtype=torch.bool)
        boxes = torch.zeros(len(values), 4)
        for k, value in enumerate(values):
            y, x = torch.where(image == value)
            boxes[k] = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
            masks[k, y.min() : y.max() + 1, x.min() : x.max() + 1] = True
        instances.pred_masks, instances.pred_boxes = masks, Boxes(boxes)
        instances.scores = torch.tensor(values) / 255
        instances.pred_classes = torch.zeros(len(values), dtype=torch.int64)
        return [{"instances": instances}]


model = L(GreyValues)(ignored=0)
train = dict(device="cpu")
"""


@pytest.fixture(scope="session")
def grey_values():
    """Start of a config: a model that finds an object for each grey value of its input image above 0.

    Its score is value / 255, its mask the bounding box of that value: pictures of rectangles have exact expectations,
    overlaps included.
    """
    return GREY_VALUES


PREDICT_CONFIG = """
dataloader = dict(test=dict(mapper=L(InstanceMapper)(is_train=False, augmentations=[], percentiles=None)))
dataset = dict(thing_classes=["cell"], score_threshold=0.5)
"""


@pytest.fixture(scope="session")
def predict():
    return importlib.import_module("predict")


@pytest.fixture
def run(predict, grey_values, tmp_path, monkeypatch):
    """Run the tool in tmp_path with the planted model; arguments as on the command line."""
    (tmp_path / "config.py").write_text(grey_values + PREDICT_CONFIG)
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "weights.pth")
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        fixed = ["--config-file", "config.py", "--weights", "weights.pth", "--output", "out"]
        return predict.main([*fixed, *arguments])

    return run
