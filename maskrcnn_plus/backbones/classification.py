"""Bare classification networks of timm, torchvision and EfficientNet-PyTorch, for the backbone of a model.

A feature extractor of timm holds the tensors of the classification network under slightly different names
("stages.0.blocks" becomes "stages_0.blocks"), so they are compared with "." written as "_". torchvision's and timm's
ResNets have the same names. Classifiers and whatever else the model lacks are left over.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from functools import cache

import timm
from timm.models import adapt_input_conv
from torch import Tensor, nn

from maskrcnn_plus.weights.conversion import Converted, WeightsFile
from maskrcnn_plus.weights.prefixes import match_by_suffix

NAME = "classification network (timm, torchvision, EfficientNet-PyTorch)"

# The first components of names that only detectors have.
_DETECTOR = {"backbone", "neck", "proposal_generator", "rpn", "rpn_head", "roi_head", "roi_heads"}
# Detectron2's own ResNet, bare: its first convolution is called as some of timm's are.
_DETECTRON2_RESNET = "res2.0.conv1.weight"

# Names of EfficientNet-PyTorch (Melas-Kyriazi, 2019) -> names of timm.
_STEM_AND_HEAD = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_INVERTED_RESIDUAL = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# A block without expansion: timm numbers its norms and names its projection differently.
_DEPTHWISE_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def matches(names: Collection[str]) -> bool:
    """True of a bare network: a first convolution that EfficientNet-PyTorch or some network of timm has."""
    if _DETECTRON2_RESNET in names or any(name.partition(".")[0] in _DETECTOR for name in names):
        return False
    return "_conv_stem.weight" in names or any(f"{conv}.weight" in names for conv in _first_convolutions())


def convert(file: WeightsFile, model: nn.Module) -> dict[str, Converted]:
    """Tensors for the backbone of a model: Detectron2's ResNet, or a network of timm anywhere below `model`.

    A first convolution for RGB is adapted to a model of other channels as timm does it.

    Args:
        file: state dict of a classification network.
        model: a detector, a backbone or a network of timm. Detectron2's ResNet must be built with `stride_in_1x1=False`
            for the same features; the file cannot tell.

    Returns:
        Name in `model.state_dict()` -> tensor.
    """
    targets = model.state_dict()
    if "layer1.0.conv1.weight" in file.tensors and any(_ends(target, _DETECTRON2_RESNET) for target in targets):
        renamed = {rename_resnet(name): name for name in file.tensors}
        names = {target: renamed[name] for target, name in match_by_suffix(targets, renamed).items()}
    else:
        names = _match_timm(targets, _convert_to_timm_names(file.tensors))
    return {target: _fit_channels(file.tensors[name], name, targets[target]) for target, name in names.items()}


def class_names(file: WeightsFile) -> None:
    """None: classes of images are not those of objects."""
    return


@cache
def _first_convolutions() -> set[str]:
    """Names of the first convolutions of timm's networks."""
    names = set()
    for model in timm.list_models():
        first = getattr(timm.get_pretrained_cfg(model), "first_conv", None) or ()
        names.update([first] if isinstance(first, str) else first)
    return names


def _ends(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith("." + suffix)


def rename_resnet(name: str) -> str:
    """Name in the ResNets of torchvision, timm and MMDetection -> Detectron2's.

    E.g. "layer1.0.downsample.1.weight" -> "res2.0.shortcut.norm.weight".
    """
    name = re.sub(r"^(conv|bn|gn)1\.", r"stem.\g<0>", name)
    name = re.sub(r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}.", name)
    name = re.sub(r"\b[bg]n(\d)\.", r"conv\1.norm.", name)
    return name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")


def _convert_to_timm_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """timm's name -> name in the file; EfficientNet-PyTorch's are translated, others are timm's already."""
    if "_conv_stem.weight" not in tensors:
        return {name: name for name in tensors}
    positions = _efficientnet_positions(tensors)
    renamed = {}
    for name in tensors:
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            block, layer, parameter = int(match[1]), match[2], match[3]
            has_expansion = f"_blocks.{block}._expand_conv.weight" in tensors
            new_layer = (_INVERTED_RESIDUAL if has_expansion else _DEPTHWISE_SEPARABLE).get(layer)
            if new_layer and block in positions:
                renamed[f"blocks.{positions[block]}.{new_layer}.{parameter}"] = name
            continue
        layer, _, parameter = name.partition(".")
        if layer in _STEM_AND_HEAD:
            renamed[f"{_STEM_AND_HEAD[layer]}.{parameter}"] = name
    return renamed


def _efficientnet_positions(tensors: Mapping[str, Tensor]) -> dict[int, str]:
    """Block, numbered throughout -> "stage.block": a stage is a run of blocks with the same channels going out."""
    positions, stage, index, channels = {}, -1, 0, None
    for block in range(len(tensors)):
        projection = tensors.get(f"_blocks.{block}._project_conv.weight")
        if projection is None:
            break
        if len(projection) != channels:
            stage, index, channels = stage + 1, 0, len(projection)
        positions[block] = f"{stage}.{index}"
        index += 1
    return positions


def _match_timm(targets: Collection[str], names: Mapping[str, str]) -> dict[str, str]:
    """Target -> name in the file, below the prefix of the model (`backbone.bottom_up.net.`) that fits most names."""
    canonical = {_canonical(name): original for name, original in names.items()}
    fits = Counter()
    for target in targets:
        parts = target.split(".")
        for i in range(len(parts)):
            fits[".".join(parts[:i]) + "." * (i > 0)] += _canonical(".".join(parts[i:])) in canonical
    prefix = max(fits, key=lambda prefix: (fits[prefix], -len(prefix)), default="")
    below = {target: _canonical(target.removeprefix(prefix)) for target in targets if target.startswith(prefix)}
    return {target: canonical[name] for target, name in below.items() if name in canonical}


def _canonical(name: str) -> str:
    """A tensor's name as it is the same in timm's classification networks and in its feature extractors."""
    return name.replace(".", "_")


def _fit_channels(tensor: Tensor, name: str, target: Tensor) -> Converted:
    """The tensor, or, of a first convolution for RGB, its form for the input channels of the model."""
    shape = tensor.shape
    is_rgb = tensor.dim() == 4 and target.dim() == 4 and shape[1] == 3
    if is_rgb and target.shape[1] != 3 and (shape[0], *shape[2:]) == (target.shape[0], *target.shape[2:]):
        adapted = adapt_input_conv(target.shape[1], tensor)
        return Converted(adapted, (name,), f"adapted from 3 to {target.shape[1]} input channels")
    return Converted(tensor, (name,))
