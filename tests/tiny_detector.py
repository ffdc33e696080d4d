"""A Mask R-CNN of a few thousand random numbers, and what tests of loading do with its weights."""

import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock

from maskrcnn_plus.config import detectron2_config


def make_resnet(blocks=(1, 2), width=8, norm="FrozenBN"):
    stages, channels = [], width
    for index, count in enumerate(blocks):
        options = dict(num_groups=1, norm=norm, bottleneck_channels=width)
        stride = [1 if index == 0 else 2] + [1] * (count - 1)
        stages.append(
            ResNet.make_stage(
                BottleneckBlock,
                count,
                stride_per_block=stride,
                in_channels=channels,
                out_channels=2 * width,
                **options,
            )
        )
        channels = 2 * width
    return ResNet(BasicStem(3, width, norm), stages, out_features=["res2", "res3"])


def make_model(num_classes=3, *, seed=0, channels=8, fpn_norm="", **backbone):
    """A tiny Mask R-CNN of Detectron2's parts, every number of it random."""
    cfg = detectron2_config("common/models/mask_rcnn_fpn.py").model
    cfg.backbone.bottom_up = L(make_resnet)(**backbone)
    cfg.backbone.in_features = ["res2", "res3"]
    cfg.backbone.out_channels = channels
    cfg.backbone.norm = fpn_norm
    cfg.backbone.top_block = None
    cfg.proposal_generator.in_features = ["p2", "p3"]
    cfg.proposal_generator.head.in_channels = channels
    cfg.proposal_generator.anchor_generator.sizes = [[32], [64]]
    cfg.proposal_generator.anchor_generator.strides = [4, 8]
    heads = cfg.roi_heads
    heads.num_classes = num_classes
    heads.box_in_features = heads.mask_in_features = ["p2", "p3"]
    heads.box_pooler.scales = heads.mask_pooler.scales = [1 / 4, 1 / 8]
    heads.box_head.input_shape = L(ShapeSpec)(channels=channels, height=7, width=7)
    heads.box_head.fc_dims = [16, 16]
    heads.box_predictor.input_shape = L(ShapeSpec)(channels=16)
    heads.mask_head.input_shape = L(ShapeSpec)(channels=channels, width=14, height=14)
    heads.mask_head.conv_dims = [8, 8, 8]
    model = instantiate(cfg)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def save(model, path, **metadata):
    torch.save({"model": model if isinstance(model, dict) else model.state_dict(), **metadata}, path)
    return str(path)


def copy_tensors(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model, before):
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
