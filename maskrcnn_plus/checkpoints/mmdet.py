"""MMDetection's Mask R-CNN and Faster R-CNN, version 2 and later (Chen et al., "MMDetection", 2019).

Heads there have the layout of Detectron2's (background last, deltas class by class), so that its tensors are renamed
and nothing else. Version 1 has the background first, gives it box and mask rows, and measures a box one pixel wider
than its coordinates; no model here computes so, and its files are refused.

Detectron2's parts compute what MMDetection's do, up to two roundings: MMDetection suppresses boxes of different levels
or classes after shifting them apart in single precision, and never shrinks a box by more than 1000 / 16 in one step.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from maskrcnn_plus.backbones.classification import rename_resnet
from maskrcnn_plus.weights.conversion import Converted, WeightsError, WeightsFile

NAME = "MMDetection detector"

MARKS = ("neck.lateral_convs.", "rpn_head.rpn_", "roi_head.", "bbox_head.fc_cls.", "mask_head.conv_logits.")
# Heads: name in the file -> name in the model. Layers counted from 0 in the file are counted from 1 by `_rename_head`.
HEADS = {
    "rpn_head.rpn_conv": "proposal_generator.rpn_head.conv",
    "rpn_head.rpn_cls": "proposal_generator.rpn_head.objectness_logits",
    "rpn_head.rpn_reg": "proposal_generator.rpn_head.anchor_deltas",
    "roi_head.bbox_head.fc_cls": "roi_heads.box_predictor.cls_score",
    "roi_head.bbox_head.fc_reg": "roi_heads.box_predictor.bbox_pred",
    "roi_head.mask_head.upsample": "roi_heads.mask_head.deconv",
    "roi_head.mask_head.conv_logits": "roi_heads.mask_head.predictor",
}
COUNTED = {
    "roi_head.bbox_head.shared_convs": "roi_heads.box_head.conv",
    "roi_head.bbox_head.shared_fcs": "roi_heads.box_head.fc",
    "roi_head.mask_head.convs": "roi_heads.mask_head.mask_fcn",
}


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these names are those of an MMDetection detector."""
    return any(name.startswith(MARKS) for name in names)


def convert(file: WeightsFile, model: nn.Module) -> dict[str, Converted]:
    """The tensors of the file under the model's names.

    Backbones: ResNet and ResNeXt, into Detectron2's `ResNet` or a `TimmBackbone` of that family. Necks: FPN. Heads:
    RPN, shared convolutions and linear layers of the box head, the mask head of Mask R-CNN.

    Args:
        file: MMDetection's "state_dict", its "meta" among the metadata.
        model: a Detectron2-style `GeneralizedRCNN`.

    Returns:
        Name in `model.state_dict()` -> tensor. What the model has no place for is left out.

    Raises:
        WeightsError: the file follows the conventions of MMDetection 1.x.
    """
    _refuse_legacy(file)
    names = set(model.state_dict())
    bottom_up = next((p for p in ("backbone.bottom_up.net.", "backbone.bottom_up.") if _any(names, p)), "backbone.")
    levels = sorted({int(n) for name in names for n in re.findall(r"^backbone\.fpn_lateral(\d+)\.", name)})
    how = _doubt(file)
    converted = {}
    for source, tensor in file.tensors.items():
        part, _, rest = source.partition(".")
        if part == "backbone":
            target = bottom_up + (rest if bottom_up.endswith(".net.") else rename_resnet(rest))
        elif part == "neck":
            target = _rename_fpn(rest, levels)
        else:
            target = _rename_head(source)
        if target in names:
            converted[target] = Converted(tensor, (source,), how if "box_predictor" in target else "")
    return converted


def class_names(file: WeightsFile) -> list[str] | None:
    """The classes that the file names in its "meta" ("dataset_meta" since version 3), in the order of the rows."""
    meta = _meta(file)
    dataset = meta.get("dataset_meta")
    for holder in (dataset if isinstance(dataset, Mapping) else {}, meta):
        for key in ("classes", "CLASSES"):
            names = holder.get(key)
            if isinstance(names, str):  # of a data set with one class, by mistake without its comma
                return [names]
            if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
                return list(names)
    return None


def _any(names: Collection[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def config_text(file: WeightsFile) -> str:
    """The config of the training, as its text; "" where the file has none."""
    meta = _meta(file)
    return next((text for key in ("cfg", "config") if isinstance(text := meta.get(key), str)), "")


def _meta(file: WeightsFile) -> Mapping[str, Any]:
    meta = file.metadata.get("meta")
    return meta if isinstance(meta, Mapping) else {}


def _rename_fpn(name: str, levels: list[int]) -> str | None:
    """Name below the neck -> the name in the model, whose pyramid has the levels `levels` (log2 of their strides)."""
    found = re.fullmatch(r"(lateral|fpn)_convs\.(\d+)\.(conv|bn|gn)\.(\w+)", name)
    if found is None or int(found[2]) >= len(levels):
        return None  # e.g. the extra convolutions of a RetinaNet's pyramid
    kind = {"lateral": "lateral", "fpn": "output"}[found[1]]
    return f"backbone.fpn_{kind}{levels[int(found[2])]}.{_in_layer(found[3], found[4])}"


def _rename_head(name: str) -> str | None:
    """Name of a tensor of the RPN or the RoI heads -> the name in the model."""
    if name.startswith("roi_head.shared_head.layer4."):  # the last stage of the backbone, in models without a pyramid
        return "roi_heads." + rename_resnet(name.removeprefix("roi_head.shared_head."))
    module, _, parameter = name.rpartition(".")
    if module in HEADS:
        return f"{HEADS[module]}.{parameter}"
    found = re.fullmatch(r"(.+)\.(\d+)(?:\.(conv|bn|gn))?", module)
    if found is None:
        return None
    if found[1] == "rpn_head.rpn_conv":
        return f"proposal_generator.rpn_head.conv.conv{found[2]}.{_in_layer(found[3], parameter)}"
    if found[1] in COUNTED:
        return f"{COUNTED[found[1]]}{int(found[2]) + 1}.{_in_layer(found[3], parameter)}"
    return None


def _in_layer(kind: str | None, parameter: str) -> str:
    """Name of a parameter of MMCV's ConvModule within Detectron2's convolution, which holds its norm."""
    return f"norm.{parameter}" if kind in ("bn", "gn") else parameter


def _refuse_legacy(file: WeightsFile) -> None:
    """Raise WeightsError for a file of MMDetection 1.x, by its names, the shapes of its heads, or its config.

    Not by its version: files of the model zoo of 2.0 were trained, and stamped, before 2.0 was released.
    """
    tensors, meta = file.tensors, _meta(file)
    rows = {
        layer: len(tensors[f"roi_head.{layer}.bias"])
        for layer in ("bbox_head.fc_cls", "bbox_head.fc_reg", "mask_head.conv_logits")
        if f"roi_head.{layer}.bias" in tensors and tensors[f"roi_head.{layer}.bias"].dim() == 1
    }
    scores = rows.get("bbox_head.fc_cls")
    config = f"{meta.get('config', '')}{meta.get('cfg', '')}"
    if "bbox_head.fc_cls.weight" in tensors or "mask_head.conv_logits.weight" in tensors:
        reason = "its heads are not under roi_head"
    elif scores is not None and rows.get("bbox_head.fc_reg") == 4 * scores:
        reason = f"its {scores} classes have {4 * scores} box deltas, so that the background comes first"
    elif scores is not None and rows.get("mask_head.conv_logits") == scores:
        reason = f"its {scores} classes have as many masks, so that the background comes first"
    elif "LegacyDeltaXYWHBBoxCoder" in config or "LegacyAnchorGenerator" in config:
        reason = "its config uses the legacy box coder or anchors"
    else:
        return
    version = meta.get("mmdet_version")
    raise WeightsError(
        f"{file.path}: a model of MMDetection 1.x{f' ({version})' if version else ''}: {reason}. Its boxes are one "
        "pixel wider than their coordinates say, and the results would not be those of MMDetection. Please take a "
        "model that was trained with MMDetection 2.0 or later."
    )


def _doubt(file: WeightsFile) -> str:
    """What the user must know about the box layers of a file that was stamped by 1.x but has the layout of 2.0."""
    version = _meta(file).get("mmdet_version")
    if isinstance(version, str) and version.startswith(("0.", "1.")):
        return f"layout of MMDetection 2, but written by {version}: exact unless upgraded from a model trained by 1.x"
    return ""
