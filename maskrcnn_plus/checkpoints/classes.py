"""Class heads across data sets: the rows of classes that the file and the model both have, matched by name.

Rows of the class heads: `cls_score` has one for each class, the background's, then any further ones; `bbox_pred` has
four for each class; the mask head's `predictor` one. Heads that do not tell classes apart have 4 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.modeling.roi_heads import BaseMaskRCNNHead
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from torch import Tensor, nn

from maskrcnn_plus.data.coco import class_key


class ClassLayer(NamedTuple):
    """A layer with rows of classes.

    Attributes:
        per_class: rows of a class.
        background: whether rows of the background, then any further ones, follow.
        in_cascade: it is of a stage of a cascade, whose boxes do not tell classes apart.
    """

    per_class: int
    background: bool = False
    in_cascade: bool = False


class Rows(NamedTuple):
    """A tensor of a class head for the model, made of rows of the file's.

    Attributes:
        tensor: [rows of the model, ...]: rows of the file, their mean for new classes.
        how: which classes were kept, in words; "" where the file's tensor is taken as it is.
        complete: the file has all classes.
    """

    tensor: Tensor
    how: str
    complete: bool


def find_class_layers(model: nn.Module) -> dict[str, ClassLayer]:
    """The tensors with rows of classes, by their names in the model.

    A head says which of its layers they are of: `class_layers` has the rows of a class by the layer's name, e.g.
    {"predictor": 1}. Detectron2's box predictors and mask heads are known.
    """
    stages = {id(part) for parent in model.modules() if isinstance(parent, nn.ModuleList) for part in parent}
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "class_layers"):
            layers = {layer: ClassLayer(rows) for layer, rows in module.class_layers.items()}
        elif isinstance(module, FastRCNNOutputLayers):
            boxes = ClassLayer(4, in_cascade=id(module) in stages)
            layers = {"cls_score": ClassLayer(1, background=True), "bbox_pred": boxes}
        elif isinstance(module, BaseMaskRCNNHead) and hasattr(module, "predictor"):
            layers = {"predictor": ClassLayer(1)}
        else:
            continue
        prefix = f"{name}." if name else ""
        found |= {f"{prefix}{layer}.{leaf}": kind for layer, kind in layers.items() for leaf in ("weight", "bias")}
    return found


def match_rows(
    layer: ClassLayer, stored: Tensor, initial: Tensor, file_names: Sequence[str], model_names: Sequence[str]
) -> Rows | None:
    """Fill a tensor of a class head from the rows of the same classes, by their names in any case.

    A class that the file does not have starts from the mean of the file's classes: its logits are those of an object,
    its boxes and masks those of any class. The background's row fits such logits, and not those of random rows.

    Args:
        layer: what the rows of the tensor are.
        stored: [rows of the file, ...], in the layout of Detectron2 (the background last).
        initial: [rows of the model, ...], the tensor that the model was built with.
        file_names, model_names: the classes in the order of the rows.

    Returns:
        None where the tensor is of a head that does not tell classes apart, or of other layers, so that it is to be
        treated like any other tensor.
    """
    if stored.shape[1:] != initial.shape[1:]:
        return None
    in_file, in_model = len(file_names), len(model_names)
    per_class = layer.per_class
    if layer.background:
        further = len(initial) - in_model
        if len(stored) < in_file + 1 or further < 1:
            return None
    elif (len(stored), len(initial)) != (per_class * in_file, per_class * in_model) or (
        layer.in_cascade and len(initial) == per_class
    ):
        return None
    position = {class_key(class_name): index for index, class_name in reversed(list(enumerate(file_names)))}
    sources = [position.get(class_key(class_name)) for class_name in model_names]
    pairs = [(target, source) for target, source in enumerate(sources) if source is not None]
    target_rows = [target * per_class + k for target, _ in pairs for k in range(per_class)]
    source_rows = [source * per_class + k for _, source in pairs for k in range(per_class)]
    if layer.background:
        # The background, and unused classes behind it where both have as many.
        tail = further if further == len(stored) - in_file else 1
        target_rows += range(in_model, in_model + tail)
        source_rows += range(in_file, in_file + tail)
    complete = len(target_rows) == len(initial)
    if complete and source_rows == list(range(len(stored))):
        return Rows(stored, "", True)
    common = torch.promote_types(initial.dtype, stored.dtype)
    tensor = initial.detach().cpu().to(common, copy=True)
    mean = stored[: in_file * per_class].to(common).unflatten(0, (in_file, per_class)).mean(dim=0)
    tensor[: in_model * per_class] = mean.repeat(in_model, *[1] * (stored.dim() - 1))
    tensor[torch.tensor(target_rows, dtype=torch.long)] = stored[torch.tensor(source_rows, dtype=torch.long)].to(common)
    return Rows(tensor, _describe(model_names, sources), complete)


def _describe(model_names: Sequence[str], sources: Sequence[int | None]) -> str:
    kept = [str(name) for name, source in zip(model_names, sources, strict=True) if source is not None]
    new = [str(name) for name, source in zip(model_names, sources, strict=True) if source is None]
    if not new:
        return "rows put in the order of the model's classes"
    words = f"{len(kept)} of {len(model_names)} classes by name"
    for title, names in (("kept", kept), ("new, from the mean of the file's", new)):
        if names:
            words += f"; {title}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
    return words
