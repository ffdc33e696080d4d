"""Images of rectangles and a model that finds them, for the tests of prediction in shards and on a cluster."""

import cv2
import numpy as np

CONFIG = """
import os
import torch
from detectron2.config import LazyCall as L
from detectron2.structures import Boxes, Instances
from torch import nn
from maskrcnn_plus.data.mapper import InstanceMapper


class GreyValues(nn.Module):
    # An object for each grey value above 0, its bounding box; 66 ends the process.
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        if os.path.exists("batches.txt"):
            with open("batches.txt", "a") as file:
                file.write(f"{len(batch)}\\n")
        return [{"instances": self.find(entry["image"][0])} for entry in batch]

    def find(self, image):
        values = [v for v in image.unique().tolist() if v > 0]
        if 66 in values:
            os._exit(9)
        masks, boxes = torch.zeros(len(values), *image.shape, dtype=torch.bool), torch.zeros(len(values), 4)
        for k, value in enumerate(values):
            y, x = torch.where(image == value)
            boxes[k] = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
            masks[k, y.min() : y.max() + 1, x.min() : x.max() + 1] = True
        found = Instances(image.shape, pred_masks=masks, pred_boxes=Boxes(boxes), scores=torch.tensor(values) / 255)
        found.pred_classes = torch.zeros(len(values), dtype=torch.int64)
        return found


model = L(GreyValues)()
train = dict(device="cpu")
dataloader = dict(test=dict(mapper=L(InstanceMapper)(is_train=False, augmentations=[], percentiles=None)))
dataset = dict(thing_classes=["cell"], score_threshold=0.25)
"""

MODEL = ["--config-file", "config.py", "--weights", "weights.pth"]


def draw(path, *values):
    """PNG with a rectangle for each value."""
    image = np.zeros((60, 60), dtype=np.uint8)
    for k, value in enumerate(values):
        image[3 * k : 3 * k + 2, 5:25] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
