"""Pictures of grey rectangles, and a model whose objects are known: for each grey value above 0, its bounding box.

Its score is value / 255, so that the pictures have exact expectations, overlaps included. `SOURCE` is the start of
a config with it, for other processes.
"""

import inspect
import json

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import nn


def draw(path, *rectangles, height=40, width=60):
    """PNG with rectangles (value, y0, y1, x0, x1), later ones on top."""
    image = np.zeros((height, width), dtype=np.uint8)
    for value, y0, y1, x0, x1 in rectangles:
        image[y0:y1, x0:x1] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def results(folder):
    """The objects that tools/predict.py found with the model, below a folder."""
    return json.loads((folder / "out/predictions.json").read_text())


class GreyValues(nn.Module):
    """Of Detectron2's kind, in evaluation; `parameter` and `ignored` change nothing of what it finds."""

    def __init__(self, parameter=0.0, ignored=0):
        super().__init__()
        self.ignored = ignored
        self.weight = nn.Parameter(torch.tensor([parameter]))

    def forward(self, batch):
        return [{"instances": self.find(entry["image"][0])} for entry in batch]

    def find(self, image):
        values = [v for v in image.unique().tolist() if v > 0]
        masks, boxes = torch.zeros(len(values), *image.shape, dtype=torch.bool), torch.zeros(len(values), 4)
        for k, value in enumerate(values):
            y, x = torch.where(image == value)
            boxes[k] = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
            masks[k, y.min() : y.max() + 1, x.min() : x.max() + 1] = True
        found = Instances(image.shape, pred_masks=masks, pred_boxes=Boxes(boxes), scores=torch.tensor(values) / 255)
        found.pred_classes = torch.zeros(len(values), dtype=torch.int64)
        return found


SOURCE = f"""
import os
import torch
from detectron2.config import LazyCall as L
from detectron2.structures import Boxes, Instances
from torch import nn
from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.data.registration import register_label_maps


{inspect.getsource(GreyValues)}
"""
