"""A model whose networks compute in bfloat16, with coordinates and scores in float32.

Shape shorthand: N images, R RoIs.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.projects.point_rend import PointRendMaskHead
from detectron2.structures import Instances
from torch import Tensor, nn

from maskrcnn_plus.device import emulates_bfloat16
from maskrcnn_plus.inference.optimize import fold_batch_norms

__all__ = ["PRECISIONS", "check_precision", "use_bfloat16"]

PRECISIONS = ("float32", "bfloat16")


def check_precision(precision: str | None, device: torch.device) -> None:
    """Refuse an unknown precision, and warn of one that this device only emulates.

    Raises:
        ValueError: there is no such precision.
    """
    if precision not in (None, *PRECISIONS):
        raise ValueError(f"precision is {precision!r}, it must be one of {', '.join(PRECISIONS)}")
    if precision == "bfloat16" and emulates_bfloat16(device.type):
        logging.getLogger(__name__).warning(
            "This CPU has neither AVX512-BF16 nor AMX and emulates bfloat16: prediction will be slower than in float32."
        )


def use_bfloat16(model: nn.Module) -> None:
    """Let the networks of a model compute in bfloat16, in place. Their weights are converted once, batch norms folded.

    Backbone, neck, RPN head, box heads and mask head work in bfloat16, RoIAlign on maps of it. Logits and deltas of the
    RPN, features of boxes, class scores, box deltas, mask logits and all coordinates are float32; so is a part that
    mixes coordinates with its layers (Cascade RPN, PointRend).

    Args:
        model: in evaluation mode, with its final weights.
    """
    model.eval().requires_grad_(False)
    fold_batch_norms(model)
    _in_bfloat16(model.backbone, outputs=None)
    rpn, heads = model.proposal_generator, model.roi_heads
    if isinstance(getattr(rpn, "rpn_head", None), StandardRPNHead):
        _in_bfloat16(rpn.rpn_head)
    else:
        rpn.register_forward_pre_hook(lambda _, inputs: _cast(inputs, torch.float32))
    for name in ("box_pooler", "mask_pooler"):
        if isinstance(pooler := getattr(heads, name, None), nn.Module):
            pooler.to(torch.bfloat16)  # which only learned ones notice
    for head in heads.box_head if isinstance(heads.box_head, nn.ModuleList) else [heads.box_head]:
        _in_bfloat16(head)
    mask_head = getattr(heads, "mask_head", None)
    if isinstance(mask_head, PointRendMaskHead):
        mask_head.register_forward_pre_hook(lambda _, inputs: _cast(inputs, torch.float32))
    elif mask_head is not None:
        _in_bfloat16(mask_head)


def _in_bfloat16(module: nn.Module, outputs: torch.dtype | None = torch.float32) -> None:
    """Convert a module, what it is given, and what it gives to `outputs`."""
    module.to(torch.bfloat16)
    module.register_forward_pre_hook(lambda _, inputs: _cast(inputs, torch.bfloat16))
    if outputs is not None:
        module.register_forward_hook(lambda _, __, results: _cast(results, outputs))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point maps and masks in nested values as another type; boxes and scores stay."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _cast(each, dtype) for key, each in value.items()}
    if isinstance(value, Instances):
        if value.has("pred_masks"):
            value.pred_masks = value.pred_masks.to(dtype)
        return value
    if isinstance(value, list | tuple):
        return type(value)(_cast(each, dtype) for each in value)
    return value
