"""A checkpoint of a small model of nuclei, and a zoo with it."""

import torch

from maskrcnn_plus import zoo
from maskrcnn_plus.apps.ship import ship
from maskrcnn_plus.build import build
from maskrcnn_plus.checkpoints import Checkpointer
from maskrcnn_plus.checkpoints.description import describe
from maskrcnn_plus.config import get_config
from maskrcnn_plus.data.classes import resolve_classes

SMALL = {"name": "resnet18", "out_features": ["res2", "res3", "res4", "res5"], "weights": "", "norm": "BN"}
CREDITS = ["Set A, its authors, CC0"]


def small_config():
    """A model of one class whose scores are spread, so that their order does not hang on the last bits."""
    cfg = get_config("nuclei/mask_rcnn_lite0_fpn")
    cfg.model.backbone.bottom_up.update(SMALL)
    cfg.model.roi_heads.box_predictor.test_score_thresh = 0.0
    cfg.model.proposal_generator.pre_nms_topk = (100, 200)
    cfg.model.proposal_generator.post_nms_topk = (50, 60)
    cfg.model.roi_heads.mask_head.conv_dims = [96, 96]
    cfg.model.roi_heads.box_head.fc_dims = [64]
    cfg.model.roi_heads.box_predictor.input_shape.channels = 64
    cfg.dataset.update(thing_classes=["nucleus"], max_objects=30, score_threshold=0.0, scale=1.0)
    cfg.dataset.root = "/home/somebody/datasets/nuclei"
    return cfg


def write_checkpoint(folder, name="model_best", **others):
    """A checkpoint of a training with `others` beside the model; its path."""
    cfg = small_config()
    classes = resolve_classes(cfg, splits=())
    torch.manual_seed(0)
    model = build(cfg, "model")
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(100)
        model.proposal_generator.rpn_head.objectness_logits.weight.mul_(100)
    description = describe(cfg, classes.names, [1], data={"train": {"images": 3}})
    checkpointer = Checkpointer(
        model, str(folder), class_names=classes.names, category_ids=[1], description=description
    )
    checkpointer.metrics = {"segm/AP": 12.5, "segm/AP-rare": float("nan")}
    checkpointer.save(name, only_model=True, **others)
    return str(folder / f"{name}.pth")


def make_zoo(folder):
    """A folder whose table has the model `nuclei`."""
    (folder / "zoo.json").write_text("{}")
    before, zoo.FOLDER = zoo.FOLDER, folder
    try:
        ship(write_checkpoint(folder), "nuclei", "Nuclei, for tests", "Apache-2.0", CREDITS)
    finally:
        zoo.FOLDER = before
    return folder
