"""Whether the parts of a Mask R-CNN fit: strides, sizes and channels, which a config says at both ends of a connection.

Where both ends are of Detectron2's or this package's classes; a part of somebody else's is not looked into.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers, MaskRCNNConvUpsampleHead
from torch import nn

from maskrcnn_plus.errors import UserError


def check_parts(model: GeneralizedRCNN) -> None:
    """Check that each part of a model is made for what the part before it gives.

    Raises:
        UserError: two parts do not fit; the message names the keys of a config that must agree.
    """
    try:
        shapes = model.backbone.output_shape()
    except (AttributeError, NotImplementedError):  # Detectron2 asks for it where an FPN or a yacs config is around
        return
    rpn, heads = model.proposal_generator, model.roi_heads
    if isinstance(rpn, RPN):
        maps = _maps(shapes, rpn.in_features, key := "model.proposal_generator.in_features")
        if strides := getattr(rpn.anchor_generator, "strides", None):
            _check_strides(maps, key, strides[: len(maps)], "model.proposal_generator.anchor_generator.strides")
        if type(rpn.rpn_head).forward is StandardRPNHead.forward:
            _check_channels(maps, key, rpn.rpn_head, "model.proposal_generator.head.in_channels")
    for kind, parts in (("box", getattr(heads, "box_head", None)), ("mask", getattr(heads, "mask_head", None))):
        pooler = getattr(heads, f"{kind}_pooler", None)
        if pooler is None or parts is None:
            continue
        key = f"model.roi_heads.{kind}_in_features"
        maps = _maps(shapes, getattr(heads, f"{kind}_in_features"), key)
        scales = getattr(pooler, "scales", None) or [level.spatial_scale for level in pooler.level_poolers]
        _check_strides(maps, key, [1 / scale for scale in scales], f"1 / model.roi_heads.{kind}_pooler.scales")
        for head in parts if isinstance(parts, nn.ModuleList) else [parts]:  # several of a cascade
            if type(head) is FastRCNNConvFCHead:
                _check_box_head(head, maps, key, pooler.output_size)
            elif getattr(type(head), "layers", None) is MaskRCNNConvUpsampleHead.layers:  # which takes them in order
                _check_channels(maps, key, head, "model.roi_heads.mask_head.input_shape.channels")
                _check_classes(head.predictor.out_channels, heads.num_classes, "mask_head", {1})
    _check_box_predictors(heads)


def _maps(shapes: dict[str, ShapeSpec], names: Sequence[str], key: str) -> list[ShapeSpec]:
    missing = [name for name in names if name not in shapes]
    if missing:
        raise UserError(f"{key} names {', '.join(missing)}, but the backbone gives {', '.join(shapes)}.")
    return [shapes[name] for name in names]


def _check_strides(maps: list[ShapeSpec], key: str, found: Sequence[float], found_key: str) -> None:
    strides = [each.stride for each in maps]
    if None in strides:
        return
    if len(found) != len(strides) or not all(map(math.isclose, found, strides)):
        raise UserError(
            f"{found_key} is {_listed(found)}, but the strides of the maps of {key} are {_listed(strides)}: they must "
            "agree."
        )


def _check_channels(maps: list[ShapeSpec], key: str, head: nn.Module, head_key: str) -> None:
    """Check the channels that the first convolution of a head takes."""
    found = next(each for each in head.modules() if isinstance(each, nn.Conv2d | nn.ConvTranspose2d)).in_channels
    channels = {each.channels for each in maps} - {None}
    if channels and channels != {found}:
        raise UserError(
            f"{head_key} is {found}, but the maps of {key} have {_listed(sorted(channels))} channels "
            "(model.backbone.out_channels): they must agree."
        )


def _check_box_head(head: FastRCNNConvFCHead, maps: list[ShapeSpec], key: str, size: tuple[int, int]) -> None:
    channels = maps[0].channels
    if head.conv_norm_relus:
        _check_channels(maps, key, head, "model.roi_heads.box_head.input_shape.channels")
        channels = head.conv_norm_relus[-1].out_channels
    if head.fcs and channels and head.fcs[0].in_features != channels * math.prod(size):
        raise UserError(
            f"model.roi_heads.box_head takes {head.fcs[0].in_features} numbers a RoI, but gets {channels} channels of "
            f"{size[0]} x {size[1]}: model.roi_heads.box_head.input_shape must have the channels of the maps of {key} "
            "(model.backbone.out_channels), and the height and width of model.roi_heads.box_pooler.output_size."
        )


def _check_box_predictors(heads: nn.Module) -> None:
    parts = [getattr(heads, name, None) for name in ("box_head", "box_predictor")]
    pairs = [parts] if not isinstance(parts[1], nn.ModuleList) else zip(*parts, strict=False)  # of a cascade
    for head, predictor in pairs:
        if not isinstance(predictor, FastRCNNOutputLayers):
            continue
        _check_classes(predictor.num_classes, heads.num_classes, "box_predictor")
        given = _numel(head.output_shape) if type(head) is FastRCNNConvFCHead else predictor.cls_score.in_features
        if predictor.cls_score.in_features != given:
            raise UserError(
                f"model.roi_heads.box_predictor.input_shape has {predictor.cls_score.in_features} channels, but "
                f"model.roi_heads.box_head gives {given} (the last of fc_dims): they must agree."
            )


def _check_classes(found: int, needed: int, name: str, allowed: Set[int] = frozenset()) -> None:
    if found not in {needed, *allowed}:
        raise UserError(
            f"model.roi_heads.{name}.num_classes is {found}, but model.roi_heads.num_classes is {needed}: they must "
            "agree."
        )


def _numel(shape: ShapeSpec) -> int:
    return math.prod(side for side in (shape.channels, shape.height, shape.width) if side)


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(f"{value:g}" for value in values)
