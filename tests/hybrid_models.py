"""Small models of every kind of head, with decided scores and masks, as checkpoints that describe themselves."""

from __future__ import annotations

import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from omegaconf import DictConfig
from torch import nn

from maskrcnn_plus.checkpoints.description import describe
from maskrcnn_plus.config import get_config

KINDS = ("mask_rcnn_plus", "variants/mask_scoring", "variants/groie")
IN_PART = ("variants/cascade_rpn", "variants/point_rend")
"""Configs of which a part stays in PyTorch."""


def tiny_config(kind: str, detections: int = 40, classes: tuple[str, ...] = ("round", "long")) -> DictConfig:
    """A config of the nuclei with a tiny backbone and narrow heads."""
    cfg = get_config(f"nuclei/{kind}")
    cfg.dataset.update(
        thing_classes=list(classes), max_objects=detections, scale=1.0, score_threshold=0.1, percentiles=None
    )
    model = cfg.model
    model.backbone.bottom_up.update(name="test_resnet", weights="")
    model.backbone.out_channels = 16
    model.proposal_generator.pre_nms_topk = model.proposal_generator.post_nms_topk = (4 * detections, 2 * detections)
    heads = model.roi_heads
    for head in heads.get("box_heads") or [heads.box_head]:
        head.fc_dims = [32]
    for predictor in heads.get("box_predictors") or [heads.box_predictor]:
        predictor.update(input_shape=L(ShapeSpec)(channels=32), test_score_thresh=0.05)
    mask_head = heads.mask_head.get("mask_head") or heads.mask_head
    if "conv_dims" in mask_head:
        mask_head.conv_dims = [16, 16, 16]
    if "mask_iou_head" in heads.mask_head:
        heads.mask_head.mask_iou_head.update(conv_dims=[16, 16], fc_dims=[32])
    if "fc_dim" in heads.mask_head:
        heads.mask_head.update(conv_dim=16, fc_dim=32, point_fc_dim=16)
    return cfg


def coco_config(name: str) -> DictConfig:
    """A config of COCO's 80 classes with narrow heads and without a download."""
    cfg = get_config(f"coco/{name}")
    model, heads = cfg.model, cfg.model.roi_heads
    body = model.backbone.get("bottom_up") or model.backbone.net
    body.weights = ""
    model.backbone.out_channels = model.proposal_generator.head.in_channels = 16
    model.proposal_generator.pre_nms_topk = model.proposal_generator.post_nms_topk = (200, 100)
    for head, side in ((heads.box_head, 7), (heads.mask_head, 14)):
        head.input_shape = L(ShapeSpec)(channels=16, height=side, width=side)
    heads.box_head.fc_dims = [32]
    heads.box_predictor.update(input_shape=L(ShapeSpec)(channels=32), test_score_thresh=0.05)
    heads.mask_head.conv_dims = [16, 16, 16]
    return cfg


def save_checkpoint(path, cfg: DictConfig) -> str:
    """Weights whose detections are many and clear."""
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    for name, module in model.named_modules():
        if name.endswith(("cls_score", "predictor", "coarse_mask_fc")) and isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=2 / module.weight[0].numel() ** 0.5)
        if name.endswith("cls_score"):
            nn.init.zeros_(module.bias)
    names = list(cfg.dataset.thing_classes)
    torch.save({"model": model.state_dict(), "description": describe(cfg, names), "class_names": names}, path)
    return str(path)
