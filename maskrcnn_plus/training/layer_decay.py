"""Layer-wise decay of the learning rate for vision transformers.

Bao, Dong, Piao, Wei, "BEiT: BERT Pre-Training of Image Transformers", 2022; the layers are counted as for ViTDet in the
development head of Detectron2 (`get_vit_lr_decay_rate`), which v0.6 lacks.
"""

import re
from collections.abc import Mapping
from typing import Any

from detectron2.solver.build import get_default_optimizer_params
from torch import nn

__all__ = ["layer_decay_params"]

# What a ViT does before its first block: patches, their positions, further tokens.
EMBEDDINGS = re.compile(r"\.(pos_embed|patch_embed|cls_token|reg_token|norm_pre)\b")
BLOCK = re.compile(r"\.blocks\.(\d+)\.")


def layer_decay_params(
    model: nn.Module,
    *,
    base_lr: float,
    decay_rate: float = 0.7,
    weight_decay_norm: float | None = 0.0,
    overrides: Mapping[str, Mapping[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups in which layers near the input of `model.backbone` learn more slowly.

    Of a backbone with D blocks, the embeddings are layer 0 and blocks 1 to D; everything else, in the backbone (its
    pyramid, its final norm) and out of it, is layer D + 1. Layer k has the learning rate
    base_lr * decay_rate ** (D + 1 - k). Frozen parameters are left out.

    Args:
        model: a detector whose backbone has the blocks `backbone.[...]blocks.0`, `...blocks.1` of one ViT.
        base_lr: learning rate of the last layer.
        decay_rate: factor from one layer to the one before, in (0, 1].
        weight_decay_norm: weight decay of norms; None: that of the optimizer.
        overrides: name of a parameter within its module -> {"weight_decay": ..., "lr": ...}, as in Detectron2's
            `get_default_optimizer_params`; a learning rate is decayed as well.

    Returns:
        Groups for a torch optimizer, one for each pair of learning rate and weight decay.

    Raises:
        ValueError: the backbone has no such blocks, or `decay_rate` is out of range.
    """
    if not 0 < decay_rate <= 1:
        raise ValueError(f"decay_rate must be in (0, 1], got {decay_rate}")
    names = {parameter: name for name, parameter in model.named_parameters()}
    blocks = [int(match[1]) for name in names.values() if (match := BLOCK.search(name)) and _in_backbone(name)]
    if not blocks:
        raise ValueError("the backbone has no blocks of a ViT: layer_decay_params is for PlainViT")
    depth = max(blocks) + 1
    # Detectron2 fills the dict of overrides in place.
    overrides = {name: dict(values) for name, values in (overrides or {}).items()}
    groups: dict[tuple, dict[str, Any]] = {}
    for group in get_default_optimizer_params(
        model, base_lr=base_lr, weight_decay_norm=weight_decay_norm, overrides=overrides
    ):
        for parameter in group["params"]:
            options = {key: value for key, value in group.items() if key != "params"}
            options["lr"] *= decay_rate ** (depth + 1 - _layer(names[parameter], depth))
            groups.setdefault(tuple(sorted(options.items())), {"params": [], **options})["params"].append(parameter)
    return list(groups.values())


def _in_backbone(name: str) -> bool:
    return name.startswith("backbone.")


def _layer(name: str, depth: int) -> int:
    """0 for the embeddings, 1 to `depth` for the blocks, `depth` + 1 for the rest."""
    if not _in_backbone(name):
        return depth + 1
    if match := BLOCK.search(name):
        return int(match[1]) + 1
    return 0 if EMBEDDINGS.search(name) else depth + 1
