"""Which parts of a model an exported graph can say again, and the rest refused by the key of the config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, MaskRCNNConvUpsampleHead, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from torch import Tensor, nn

from maskrcnn_plus.backbones import PlainViT
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.mask_heads import BoundaryMaskHead, ConvUpsampleMaskHead, MaskScoringHead
from maskrcnn_plus.mask_rcnn import MaskRCNNPlus
from maskrcnn_plus.roi import DenseCascadeROIHeads, DenseROIHeads, FastRCNNOutput
from maskrcnn_plus.roi.generic import GenericRoIExtractor
from maskrcnn_plus.roi.pooler import PyramidROIAlign
from maskrcnn_plus.rpn import BatchedRPN, CascadeRPN, IoUAwareRPN

_CASCADES = (CascadeROIHeads, DenseCascadeROIHeads)
_MASK_HEADS = (MaskRCNNConvUpsampleHead, ConvUpsampleMaskHead, BoundaryMaskHead)


@dataclass(frozen=True)
class ModelParts:
    """What differs between the models that can be exported.

    Attributes:
        two_stages: the RPN regresses twice.
        box_stages: a box head and its predictor a stage.
        mask_head: None of a model without masks.
        mask_logits: RoI features -> [D, C or 1, S, S]; None of a model without masks.
    """

    two_stages: bool
    box_stages: list[tuple[nn.Module, nn.Module]]
    mask_head: nn.Module | None
    mask_logits: Callable[[Tensor], Tensor] | None


def get_parts(model: nn.Module) -> ModelParts:
    """Look at a model. Its poolers become `PyramidROIAlign`s, of the same results.

    Raises:
        UserError: a part that cannot be exported; the message has its config key and its class.
    """
    _check("model", model, (GeneralizedRCNN, MaskRCNNPlus))
    _check("model.proposal_generator", model.proposal_generator, (RPN, BatchedRPN, IoUAwareRPN, CascadeRPN))
    _check(
        "model.proposal_generator.box2box_transform", model.proposal_generator.box2box_transform, (Box2BoxTransform,)
    )
    heads = model.roi_heads
    _check("model.roi_heads", heads, (StandardROIHeads, DenseROIHeads, *_CASCADES))
    refuse_plain_vits(model.backbone)
    if heads.keypoint_on:
        raise _refusal("model.roi_heads.keypoint_head", heads.keypoint_head, ())
    cascade = type(heads) in _CASCADES
    stages = list(zip(heads.box_head, heads.box_predictor, strict=True)) if cascade else []
    stages = stages or [(heads.box_head, heads.box_predictor)]
    for index, (_, predictor) in enumerate(stages):
        key = f"model.roi_heads.box_predictor{f's.{index}' if cascade else ''}"
        _check(key, predictor, (FastRCNNOutputLayers, FastRCNNOutput))
        if getattr(predictor, "soft_nms_method", ""):
            raise UserError(
                f"{key}.soft_nms_method={predictor.soft_nms_method}: Soft-NMS cannot be exported. Set it to '' (plain "
                "NMS)."
            )
    heads.box_pooler = _pooler("model.roi_heads.box_pooler", heads.box_pooler)
    mask_logits = None
    if heads.mask_on:
        mask_logits = _get_mask_logits("model.roi_heads.mask_head", heads.mask_head)
        heads.mask_pooler = _pooler("model.roi_heads.mask_pooler", heads.mask_pooler)
    return ModelParts(
        isinstance(model.proposal_generator, CascadeRPN),
        stages,
        heads.mask_head if heads.mask_on else None,
        mask_logits,
    )


def refuse_plain_vits(backbone: nn.Module) -> None:
    """A trace keeps the windows and position embeddings of one image size, and runs on others unchecked.

    Raises:
        UserError: there is a plain ViT in `model.backbone`.
    """
    name = next((name for name, each in backbone.named_modules(prefix="backbone") if isinstance(each, PlainViT)), None)
    if name is not None:
        raise UserError(
            f"model.{name} (PlainViT) cannot be exported: its windows and position embeddings follow the size of the "
            "image, which a graph cannot."
        )


def _get_mask_logits(key: str, head: nn.Module) -> Callable[[Tensor], Tensor]:
    if type(head) is MaskScoringHead:
        return _get_mask_logits(f"{key}.mask_head", head.mask_head)
    _check(key, head, _MASK_HEADS, (MaskScoringHead,))
    if isinstance(head, BoundaryMaskHead):
        return lambda x: head.mask_outputs(x)["pred_mask_logits"]
    return head.layers


def _pooler(key: str, pooler: nn.Module | None) -> nn.Module:
    pooler = PyramidROIAlign.from_pooler(pooler)
    _check(key, pooler, (PyramidROIAlign, GenericRoIExtractor))
    return pooler


def _check(key: str, part: nn.Module | None, known: tuple[type, ...], also: tuple[type, ...] = ()) -> None:
    if type(part) not in known:
        raise _refusal(key, part, (*known, *also))


def _refusal(key: str, part: nn.Module | None, known: tuple[type, ...]) -> UserError:
    names = f" Known are {', '.join(each.__name__ for each in known)}." if known else ""
    return UserError(f"{key} ({type(part).__name__}) cannot be exported.{names}")
