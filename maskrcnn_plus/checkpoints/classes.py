"""Class heads across data sets: the rows of classes that the file and the model both have, matched by name.

Rows of the class heads: `cls_score` has one for each class, the background's, then any further ones; `bbox_pred` has
four for each class; the mask head's `predictor` one. Heads that do not tell classes apart have 4 and 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maskrcnn_plus.data.coco import class_key

_HEAD = re.compile(
    r"(?:.*\.)?(?:box_predictor\.(?:\d+\.)?(?P<cls>cls_score)|box_predictor\.(?:\d+\.)?(?P<box>bbox_pred)"
    r"|mask_head\.(?:mask_head\.|mask_iou_head\.)?(?P<mask>predictor|boundary_predictor|fc_mask_iou))\.(?:weight|bias)"
)


class Rows(NamedTuple):
    """A tensor of a class head for the model, made of rows of the file's.

    Attributes:
        tensor: [rows of the model, ...]: rows of the file where `complete` or kept, else the model's own.
        how: which classes were kept, in words; "" where the file's tensor is taken as it is.
        complete: all rows come from the file.
    """

    tensor: Tensor
    how: str
    complete: bool


def match_rows(
    name: str, stored: Tensor, initial: Tensor, file_names: Sequence[str], model_names: Sequence[str]
) -> Rows | None:
    """Fill a tensor of a class head from the rows of the same classes, by their names in any case.

    Args:
        name: of the tensor in the model.
        stored: [rows of the file, ...], in the layout of Detectron2 (the background last).
        initial: [rows of the model, ...], the tensor that the model was built with.
        file_names, model_names: the classes in the order of the rows.

    Returns:
        None where the tensor is of no class head, of one that does not tell classes apart, of other layers, or of other
        classes throughout, so that it is to be treated like any other tensor.
    """
    match = _HEAD.fullmatch(name)
    if not match or stored.shape[1:] != initial.shape[1:]:
        return None
    in_file, in_model = len(file_names), len(model_names)
    per_class = 4 if match["box"] else 1
    if match["cls"]:
        further = len(initial) - in_model
        if len(stored) < in_file + 1 or further < 1:
            return None
    elif (len(stored), len(initial)) != (per_class * in_file, per_class * in_model) or _is_agnostic(name, initial):
        return None
    position = {class_key(class_name): index for index, class_name in reversed(list(enumerate(file_names)))}
    sources = [position.get(class_key(class_name)) for class_name in model_names]
    pairs = [(target, source) for target, source in enumerate(sources) if source is not None]
    if not (pairs or match["cls"]) and stored.shape != initial.shape:
        return None
    target_rows = [target * per_class + k for target, _ in pairs for k in range(per_class)]
    source_rows = [source * per_class + k for _, source in pairs for k in range(per_class)]
    if match["cls"]:
        # The background, and unused classes behind it where both have as many.
        tail = further if further == len(stored) - in_file else 1
        target_rows += range(in_model, in_model + tail)
        source_rows += range(in_file, in_file + tail)
    complete = len(target_rows) == len(initial)
    if complete and source_rows == list(range(len(stored))):
        return Rows(stored, "", True)
    common = torch.promote_types(initial.dtype, stored.dtype)
    tensor = initial.detach().cpu().to(common, copy=True)
    tensor[torch.tensor(target_rows, dtype=torch.long)] = stored[torch.tensor(source_rows, dtype=torch.long)].to(common)
    return Rows(tensor, _describe(model_names, sources), complete)


def _is_agnostic(name: str, initial: Tensor) -> bool:
    """Of one class, by the layout alone: heads of cascades do not tell classes apart."""
    return len(initial) == 4 and re.search(r"box_predictor\.\d+\.bbox_pred", name) is not None


def _describe(model_names: Sequence[str], sources: Sequence[int | None]) -> str:
    kept = [str(name) for name, source in zip(model_names, sources, strict=True) if source is not None]
    new = [str(name) for name, source in zip(model_names, sources, strict=True) if source is None]
    if not new:
        return "rows put in the order of the model's classes"
    words = f"{len(kept)} of {len(model_names)} classes by name"
    for title, names in (("kept", kept), ("initialised anew", new)):
        if names:
            words += f"; {title}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
    return words
