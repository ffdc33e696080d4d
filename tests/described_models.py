"""A small model as checkpoints describe it, and checkpoints whose description somebody has changed."""

import copy
import functools

import torch

from maskrcnn_plus.checkpoints.description import (
    DESCRIPTION,
    describe,
)
from maskrcnn_plus.config import get_config

SMALL = {
    "name": "resnet18",
    "out_features": ["res2", "res3", "res4", "res5"],
    "weights": "",
    "norm": "BN",
}


def small_config():
    """The demo's model, with a smaller backbone."""
    cfg = get_config("demo/mask_rcnn_lite0_fpn")
    cfg.model.backbone.bottom_up.update(SMALL)
    cfg.model.roi_heads.box_predictor.test_score_thresh = 0.0
    cfg.dataset.max_objects = 20
    cfg.dataset.score_threshold = 0.0
    return cfg


@functools.cache
def described():
    """What an honest checkpoint says."""
    return describe(small_config())


def forged(tmp_path, change, part="model"):
    """Path of a checkpoint whose config somebody has changed."""
    description = copy.deepcopy(described())
    change(description["config"] if part is None else description["config"][part])
    torch.save({"model": {"x": torch.zeros(1)}, DESCRIPTION: description}, tmp_path / "forged.pth")
    return str(tmp_path / "forged.pth")
