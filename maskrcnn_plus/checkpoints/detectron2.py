"""Checkpoints of Detectron2 (ours among them), of its model zoo, and of Caffe2 Detectron.

Three kinds of names: a whole model's own (`backbone.bottom_up.res2.0.conv1.weight`), those of a part of it, as in files
of pretrained backbones (`res2.0.conv1.weight`), and Caffe2's (`res2_0_branch2a_w`, background class first). As in
Detectron2, a tensor of the model takes the tensor of the file with the longest name that ends its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import nn

from maskrcnn_plus.weights.conversion import Converted, WeightsError, WeightsFile
from maskrcnn_plus.weights.prefixes import match_by_suffix

NAME = "Detectron2 checkpoint"

_COCO = [category["name"] for category in COCO_CATEGORIES if category["isthing"]]


def matches(names: Collection[str]) -> bool:
    """True of every file with tensors: where no other format is recognised, names are taken as they are."""
    return len(names) > 0


def convert(file: WeightsFile, model: nn.Module) -> dict[str, Converted]:
    """Tensors for a Detectron2 model, by its names.

    Args:
        file: a checkpoint of this package or of Detectron2, a file of its model zoo, or a Caffe2 file.
        model: any Detectron2 model; names only are looked at.

    Returns:
        Name in `model.state_dict()` -> tensor. A name of the file that fits several tensors of the model is not used.

    Raises:
        WeightsError: Caffe2's names are mixed with others, or its class heads have no row for the background.
    """
    tensors = _rename_caffe2(file) if _is_caffe2(file) else {n: Converted(t, (n,)) for n, t in file.tensors.items()}
    targets = model.state_dict()
    converted = {target: tensors[name] for target, name in match_by_suffix(targets, tensors).items()}
    if _is_caffe2(file):
        converted |= _identity_statistics(converted, targets)
    return converted


def class_names(file: WeightsFile) -> list[str] | None:
    """The names that the checkpoint has written down, COCO's for a model of the zoos with 80 classes, else None."""
    names = file.metadata.get("class_names")
    if names and isinstance(names, list | tuple):
        return [str(name) for name in names]
    from_zoo = _is_caffe2(file) or file.metadata.get("__author__") == "Detectron2 Model Zoo"
    if from_zoo and _num_classes(file) == len(_COCO):
        return list(_COCO)
    return None


def _is_caffe2(file: WeightsFile) -> bool:
    # Pickles of the zoo say so; the names settle it for a file that was saved again in another format.
    return file.metadata.get("__author__") == "Caffe2" or {"conv1_w", "res2_0_branch2a_w"} <= file.tensors.keys()


def _rename_caffe2(file: WeightsFile) -> dict[str, Converted]:
    """Detectron2's names (without the prefixes of a model) and order of classes."""
    try:
        renamed, sources = convert_c2_detectron_names(dict(file.tensors))
    except (AssertionError, ValueError, IndexError) as error:
        raise WeightsError(f"{file.path}: its names are not those of a Caffe2 Detectron model ({error!r}).") from error
    how = {"bbox_pred": "rows of the background dropped", "cls_score": "row of the background moved last"}
    how["mask_head.predictor"] = how["bbox_pred"]
    return {
        name: Converted(tensor, (sources[name],), how.get(name.rpartition(".")[0], ""))
        for name, tensor in renamed.items()
    }


def _identity_statistics(converted: Mapping[str, Converted], targets: Collection[str]) -> dict[str, Converted]:
    """Mean 0 and variance 1 for batch norms of which Caffe2 keeps scale and bias only.

    They are the values that Detectron2 takes; it adds its eps of 1e-5 to the variance then as ever.
    """
    statistics = {}
    for target, scale in converted.items():
        norm = target.removesuffix(".weight")
        if norm == target or not scale.sources[0].endswith("bn_s"):
            continue
        for name, value in (("running_mean", torch.zeros), ("running_var", torch.ones)):
            if (key := f"{norm}.{name}") in targets and key not in converted:
                how = f"{'mean 0' if name == 'running_mean' else 'variance 1'}, as they are folded into scale and bias"
                statistics[key] = Converted(value(scale.tensor.shape), scale.sources, how)
    return statistics


def _num_classes(file: WeightsFile) -> int | None:
    """Classes without the background, by the rows of the (last) box classifier."""
    rows = [
        len(tensor)
        for name, tensor in file.tensors.items()
        if name in ("cls_score_w", "cls_score.weight") or name.endswith(".cls_score.weight")
        if tensor.dim() == 2
    ]
    return rows[-1] - 1 if rows else None
