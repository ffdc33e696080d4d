"""Weights of torchvision's Mask R-CNN and Faster R-CNN with a ResNet-FPN, of every version and any number of classes.

Source: torchvision, models/detection/{faster_rcnn,mask_rcnn,rpn}.py and their `_load_from_state_dict`.

torchvision's rows of classes are the background, then the classes; of its 90 COCO classes 10 were never annotated.
Detectron2's are the classes, then the background; `FastRCNNOutput` may keep the unused ones behind it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from maskrcnn_plus.backbones.classification import rename_resnet
from maskrcnn_plus.weights.conversion import Converted, WeightsError, WeightsFile

NAME = "torchvision detection model"

_CATEGORIES = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # of 91 rows, the background first
_COCO_ROWS = [row for row, name in enumerate(_CATEGORIES) if row and name != "N/A"]
_UNUSED_ROWS = [row for row, name in enumerate(_CATEGORIES) if row and name == "N/A"]

_EPS = 1e-5
# These were trained before torchvision's frozen batch norm had an eps, and torchvision runs them with eps 0.
_OFFICIAL_WITHOUT_EPS = re.compile(r"(mask|faster|keypoint)rcnn_resnet50_fpn_coco-\w+\.pth")

_BODY = "backbone.body."
_FPN = "backbone.fpn."
_RPN = "rpn.head."
_BOX_HEAD = "roi_heads.box_head."
_MASK_HEAD = "roi_heads.mask_head."
_CLS_SCORE = "roi_heads.box_predictor.cls_score."
_BBOX_PRED = "roi_heads.box_predictor.bbox_pred."
_MASK_DECONV = "roi_heads.mask_predictor.conv5_mask."
_MASK_LOGITS = "roi_heads.mask_predictor.mask_fcn_logits."


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these names are of a Faster or Mask R-CNN of torchvision."""
    return _RPN + "cls_logits.weight" in names and any(name.startswith(_BODY) for name in names)


def class_names(file: WeightsFile) -> list[str] | None:
    """The names of COCO's 80 classes, in the order of the converted rows, where the file has torchvision's 91 rows."""
    weight = file.tensors.get(_CLS_SCORE + "weight")
    return [_CATEGORIES[row] for row in _COCO_ROWS] if weight is not None and _is_coco(len(weight)) else None


def convert(file: WeightsFile, model: nn.Module) -> dict[str, Converted]:
    """Put the tensors under the names of a Detectron2 Mask R-CNN with FPN.

    The body goes into Detectron2's ResNet, or into a TimmBackbone of a ResNet where the model has one.

    Args:
        file: of torchvision's detection models.
        model: asked for its tensor names, the eps of its batch norms, and its unused classes.

    Returns:
        Tensor name of the model -> tensor. What has no place in the model is left out.

    Raises:
        WeightsError: a tensor that has rows for every class has a number of rows that cannot be.
    """
    places = set(model.state_dict())
    rename = _renaming(file.tensors, any(name.startswith("backbone.bottom_up.net.") for name in places))
    converted = {}
    for source, tensor in file.tensors.items():
        target = rename(source)
        if target in places:
            try:
                tensor, how = _reorder_classes(source, tensor, model)
            except ValueError as error:
                raise WeightsError(f"{file.path}: {error}") from error
            converted[target] = Converted(tensor, (source,), how)
    source_eps = 0.0 if _OFFICIAL_WITHOUT_EPS.fullmatch(os.path.basename(file.path)) else _EPS
    _replace_eps(converted, model, source_eps)
    return converted


def _renaming(names: Collection[str], timm_body: bool) -> Callable[[str], str]:
    """Function from the file's tensor names to the model's, "" for those that the model has no name for."""
    levels = len({match[1] for name in names if (match := re.match(r"backbone\.fpn\.inner_blocks\.(\d+)\.", name))})
    rpn_convs = {match[1] for name in names if (match := re.match(r"rpn\.head\.conv\.(\d+)\.0\.", name))}
    box_convs = {match[1] for name in names if (match := re.match(r"roi_heads\.box_head\.(\d+)\.0\.", name))}

    def conv_norm(place: str, part: str) -> str:
        """Of Sequential(conv, norm): "0.weight" -> "<place>.weight", "1.weight" -> "<place>.norm.weight"."""
        index, _, leaf = part.partition(".")
        return place + {"0": ".", "1": ".norm."}[index] + leaf

    def fpn(kind: str, index: str, part: str) -> str:
        place = f"backbone.fpn_{'lateral' if kind == 'inner' else 'output'}{6 - levels + int(index)}"
        return conv_norm(place, part) if part[0].isdigit() else f"{place}.{part}"

    def rpn_conv(index: str, leaf: str) -> str:
        nested = f".conv{index}" if len(rpn_convs) > 1 else ""
        return f"proposal_generator.rpn_head.conv{nested}.{leaf}"

    def box_layer(index: str, part: str) -> str:
        if index in box_convs:
            return conv_norm(f"roi_heads.box_head.conv{int(index) + 1}", part)
        # After the convolutions: flatten, then linear layers and ReLUs in turn.
        return f"roi_heads.box_head.fc{(int(index) - len(box_convs) - 1) // 2 + 1}.{part}"

    def mask_layer(index: str, part: str) -> str:
        return conv_norm(f"roi_heads.mask_head.mask_fcn{int(index) + 1}", part)

    def body(name: str) -> str:
        """timm's ResNet has torchvision's names."""
        return "backbone.bottom_up." + (f"net.{name}" if timm_body else rename_resnet(name))

    rules = [
        (_BODY, r"(.+)", body),
        (_FPN, r"(inner|layer)_blocks\.(\d+)\.((?:[01]\.)?\w+)", fpn),
        (_RPN, r"conv\.(\d+)\.0\.(\w+)", rpn_conv),
        (_RPN, r"conv\.(weight|bias)", "proposal_generator.rpn_head.conv.{}".format),
        (_RPN, r"cls_logits\.(\w+)", "proposal_generator.rpn_head.objectness_logits.{}".format),
        (_RPN, r"bbox_pred\.(\w+)", "proposal_generator.rpn_head.anchor_deltas.{}".format),
        (_BOX_HEAD, r"fc6\.(\w+)", "roi_heads.box_head.fc1.{}".format),
        (_BOX_HEAD, r"fc7\.(\w+)", "roi_heads.box_head.fc2.{}".format),
        (_BOX_HEAD, r"(\d+)\.((?:[01]\.)?\w+)", box_layer),
        (_CLS_SCORE, r"(\w+)", "roi_heads.box_predictor.cls_score.{}".format),
        (_BBOX_PRED, r"(\w+)", "roi_heads.box_predictor.bbox_pred.{}".format),
        (_MASK_HEAD, r"(mask_fcn\d+\.\w+)", "roi_heads.mask_head.{}".format),
        (_MASK_HEAD, r"(\d+)\.([01]\.\w+)", mask_layer),
        (_MASK_DECONV, r"(\w+)", "roi_heads.mask_head.deconv.{}".format),
        (_MASK_LOGITS, r"(\w+)", "roi_heads.mask_head.predictor.{}".format),
    ]

    def rename(name: str) -> str:
        for prefix, pattern, to_target in rules:
            match = re.fullmatch(re.escape(prefix) + pattern, name)
            if match:
                return to_target(*match.groups())
        return ""

    return rename


def _reorder_classes(source: str, tensor: Tensor, model: nn.Module) -> tuple[Tensor, str]:
    """The tensor with Detectron2's order of classes, and what was done."""
    prefix = source.rpartition(".")[0] + "."
    if prefix not in (_CLS_SCORE, _BBOX_PRED, _MASK_LOGITS):
        return tensor, ""
    per_class = 4 if prefix == _BBOX_PRED else 1
    if tensor.ndim == 0 or len(tensor) < 2 * per_class or len(tensor) % per_class:
        raise ValueError(
            f"{source} is {list(tensor.shape)}: it must have {per_class} row{'s' * (per_class > 1)} for the background "
            "and as many for each class."
        )
    num_rows = len(tensor) // per_class
    used = _COCO_ROWS if _is_coco(num_rows) else list(range(1, num_rows))
    unused = _UNUSED_ROWS if _is_coco(num_rows) else []
    dropped = f" and of {len(unused)} unused classes" if unused else ""
    if prefix == _CLS_SCORE:
        keeps_unused = unused and _num_unused_classes(model) == len(unused)
        rows = [*used, 0, *(unused if keeps_unused else [])]
        how = "row of the background moved behind the classes"
        if keeps_unused:
            how += f", rows of {len(unused)} unused classes behind it"
        elif unused:
            how += f", rows of {len(unused)} unused classes dropped"
    else:
        rows, how = used, f"rows of the background{dropped} dropped"
    tensor = tensor.unflatten(0, (num_rows, per_class))[rows].flatten(0, 1)  # [R * per_class, ...]
    return tensor, how


def _is_coco(num_rows: int) -> bool:
    return num_rows == len(_CATEGORIES)


def _num_unused_classes(model: nn.Module) -> int:
    predictor = getattr(getattr(model, "roi_heads", None), "box_predictor", None)
    return getattr(predictor, "num_unused_classes", 0)


def _replace_eps(converted: dict[str, Converted], model: nn.Module, source_eps: float) -> None:
    """Scale the weights of batch norms, in place of the dict, where the model adds another eps than the file's.

    Not the variances: those of dead channels lie far below 1e-5, and variance - 1e-5 + 1e-5 would lose them.
    """
    for target in [name for name in converted if name.endswith(".running_var")]:
        place = target.removesuffix(".running_var")
        weight = converted.get(place + ".weight")
        eps = getattr(model.get_submodule(place), "eps", _EPS)
        variance = converted[target].tensor.double()
        if weight is None or weight.tensor.shape != variance.shape or eps == source_eps:
            continue
        scaled = weight.tensor.double() * torch.sqrt((variance + eps) / (variance + source_eps))
        sources = (*weight.sources, *converted[target].sources)
        how = f"scaled, since the model adds eps {eps:g} to the variance and the file's {source_eps:g}"
        converted[place + ".weight"] = Converted(scaled.to(weight.tensor.dtype), sources, how)
