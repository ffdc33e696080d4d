"""Backbones below the same FPN and heads: parameters and time of prediction, as a Markdown table.

Heads depend on what they are given, and a backbone with random weights gives noise. Each model therefore computes its
own proposals and then pools the same boxes as the others, which its box head keeps as they are.
"""

from __future__ import annotations

import copy

import torch
from detectron2.config import LazyCall, instantiate
from detectron2.structures import Boxes, ImageList, Instances
from omegaconf import DictConfig
from torch import Tensor, nn

from benchmarks.roi_align import photograph_boxes
from benchmarks.timing import median, time_in_turn
from maskrcnn_plus.backbones import PlainViT, TimmBackbone
from maskrcnn_plus.device import use_channels_last
from maskrcnn_plus.necks import SimpleFeaturePyramid

NAMES = (
    "mobilenetv4_conv_small",
    "tf_efficientnet_lite0",
    "efficientnet_b0",
    "resnet18",
    "resnet50",
    "resnet101",
    "resnext101_32x8d",
    "regnety_016",
    "hgnetv2_b0",
    "convnext_tiny",
    "convnextv2_nano",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "hrnet_w18",
    "fastvit_t8",
    "vit_base_patch16_224",
)
PROPOSALS = 1000  # an image


class FixedProposals(nn.Module):
    """An RPN whose proposals are replaced, once computed, by given boxes [K, 4]."""

    def __init__(self, rpn: nn.Module, boxes: Tensor):
        super().__init__()
        self.rpn = rpn
        self.boxes = boxes

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: None = None
    ) -> tuple[list[Instances], dict]:
        self.rpn(images, features, gt_instances)
        return [Instances(size, proposal_boxes=Boxes(self.boxes)) for size in images.image_sizes], {}


def build_model(cfg: DictConfig, name: str, boxes: Tensor) -> nn.Module:
    """The config's model on another backbone, with random weights; it detects the given boxes, as the first class."""
    cfg = copy.deepcopy(cfg)
    if name.startswith("vit_"):
        cfg.model.pixel_mean = cfg.model.pixel_std = [127.5] * 3  # those of the config are of a backbone below an FPN
        cfg.model.backbone = LazyCall(SimpleFeaturePyramid)(
            net=LazyCall(PlainViT)(name=name, keep_prefix_tokens=False),
            out_channels=cfg.model.backbone.out_channels,
            top_block=cfg.model.backbone.top_block,
        )
    else:
        features = list(cfg.model.backbone.bottom_up.out_features)
        cfg.model.backbone.bottom_up = LazyCall(TimmBackbone)(name=name, out_features=features)
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    model.dense_masks = False  # as in a Predictor
    model.proposal_generator = FixedProposals(model.proposal_generator, boxes)
    predictor = model.roi_heads.box_predictor
    for layer in (predictor.cls_score, predictor.bbox_pred):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    predictor.cls_score.bias.data[0] = 5.0
    return use_channels_last(model)


def benchmark_backbones(cfg: DictConfig, names: list[str], size: tuple[int, int], rounds: int) -> None:
    """Prints the table; times are medians with quartiles of one image of `size` (height, width)."""
    generator = torch.Generator().manual_seed(0)
    boxes = photograph_boxes(PROPOSALS, size, generator)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    models = [build_model(cfg, name, boxes) for name in names]
    networks = [m.backbone.bottom_up if hasattr(m.backbone, "bottom_up") else m.backbone.net for m in models]
    functions = []
    for model, network in zip(models, networks, strict=True):
        pixels = model.preprocess_image([{"image": image}]).tensor
        functions += [lambda n=network, p=pixels: n(p), lambda m=model: m([{"image": image}])]
    with torch.inference_mode():
        times = time_in_turn(functions, rounds)
        objects = [len(model([{"image": image}])[0]["instances"]) for model in models]
    if len(set(objects)) > 1:
        raise RuntimeError(f"the heads of the models did not do the same work: {objects} objects")
    work = f"{PROPOSALS} proposals, {objects[0]} objects"
    print(f"Prediction of an image of {size[0]} x {size[1]}, {work}, {rounds} rounds\n")
    print("| backbone | its parameters, M | those of the model, M | backbone, ms | model, ms |")
    print("|---|---|---|---|---|")
    for index, (name, model, network) in enumerate(zip(names, models, networks, strict=True)):
        counts = [f"{sum(p.numel() for p in module.parameters()) / 1e6:.1f}" for module in (network, model)]
        cells = [name, *counts, *(median(record).strip() for record in times[2 * index : 2 * index + 2])]
        print(f"| {' | '.join(cells)} |")
