"""Small Mask R-CNNs of each kind with random weights, whose scores and boxes are spread out."""

import torch
from detectron2.config import LazyCall as L
from torch import nn

from maskrcnn_plus.config import get_config
from maskrcnn_plus.inference.predictor import Predictor

VARIANTS = "nuclei/variants/"


def small_config(name, classes=1, max_objects=20, backbone="test_resnet.r160_in1k"):
    """A shipped config with a backbone of 0.3 M parameters, narrow heads and few proposals."""
    cfg = get_config(name)
    cfg.dataset.thing_classes = [f"kind {k}" for k in range(classes)]
    cfg.dataset.max_objects = max_objects
    cfg.dataset.score_threshold = 0.0
    cfg.dataset.scale = 1.3
    cfg.train.device = "cpu"
    cfg.model.backbone.bottom_up.name = backbone
    cfg.model.backbone.bottom_up.weights = ""
    cfg.model.backbone.out_channels = 16
    cfg.model.proposal_generator.pre_nms_topk = (60, 60)
    cfg.model.proposal_generator.post_nms_topk = (40, 40)
    heads = cfg.model.roi_heads
    for head in heads.box_heads if "box_heads" in heads else [heads.box_head]:
        head.fc_dims = [32, 32]
    for predictor in heads.box_predictors if "box_predictors" in heads else [heads.box_predictor]:
        predictor.input_shape.channels = 32
        predictor.test_score_thresh = 0.0
    mask_head = heads.mask_head if "conv_dims" in heads.mask_head else heads.mask_head.mask_head
    mask_head.conv_dims = [16, 16]
    return cfg


def scoring_config():
    """Cascade RPN, mask scoring, GRoIE for the boxes and PAFPN, of two classes."""
    cfg = small_config(f"{VARIANTS}cascade_rpn", classes=2)
    mask_head = small_config(f"{VARIANTS}mask_scoring", classes=2).model.roi_heads.mask_head
    mask_head.mask_iou_head.conv_dims, mask_head.mask_iou_head.fc_dims = [16, 16], [16]
    cfg.model.roi_heads.mask_head = mask_head
    cfg.model.backbone._target_ = get_config(f"{VARIANTS}pafpn").model.backbone._target_
    cfg.model.roi_heads.box_pooler = get_config(f"{VARIANTS}groie").model.roi_heads.box_pooler
    return cfg


def torchvision_config(classes=3, max_objects=20):
    """torchvision's rules of anchors, RoIAlign, boxes, resizing and pasting."""
    cfg = small_config("nuclei/mask_rcnn_lite0_fpn", classes, max_objects)
    zoo = get_config("zoo/torchvision_mask_rcnn_r50_fpn")
    heads = cfg.model.roi_heads
    cfg.model.mask_pasting = "torchvision"
    cfg.model.proposal_generator.anchor_generator = zoo.model.proposal_generator.anchor_generator
    cfg.model.proposal_generator.head.num_anchors = 3
    cfg.model.proposal_generator.min_box_size = 1e-3
    for pooler in (heads.box_pooler, heads.mask_pooler):
        pooler.sampling_ratio, pooler.pooler_type = 2, "ROIAlign"
    heads.box_predictor._target_ = zoo.model.roi_heads.box_predictor._target_
    heads.box_predictor.num_unused_classes, heads.box_predictor.min_box_size = 2, 9.0
    cfg.dataloader.test.mapper.augmentations = [
        L(zoo.dataloader.test.mapper.augmentations[0]._target_)(short_edge_length=90, max_size=150)
    ]
    cfg.dataloader.test.mapper.percentiles = None
    return cfg


def build_predictor(cfg, seed=0, **options):
    """A Predictor of random weights."""
    torch.manual_seed(seed)
    predictor = Predictor(cfg, "random", optimize=False, **options)
    with torch.no_grad():
        for name, parameter in predictor.model.named_parameters():
            if parameter.dim() > 1 and ("proposal_generator" in name or "roi_heads" in name):
                parameter.mul_(30 if "objectness" in name else 4)
            if "mask_head" in name and name.endswith("predictor.weight"):
                parameter.sub_(parameter.mean(1, keepdim=True)).mul_(30)  # masks with holes and edges
        for module in predictor.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.7, 1.3)
    return predictor
