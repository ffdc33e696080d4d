"""A model's weights from a file of any known format: recognised, converted, matched, checked, and only then copied."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import ModuleType

import torch
from detectron2.modeling import Backbone
from torch import Tensor, nn

from maskrcnn_plus.backbones import classification
from maskrcnn_plus.checkpoints import detectron2, mmdet, torchvision
from maskrcnn_plus.checkpoints.classes import find_class_layers, match_rows
from maskrcnn_plus.checkpoints.mismatch import describe_mismatch, find_contradiction
from maskrcnn_plus.checkpoints.report import LoadReport
from maskrcnn_plus.checkpoints.sources import local_path
from maskrcnn_plus.data.classes import Classes
from maskrcnn_plus.data.coco import class_key
from maskrcnn_plus.weights.conversion import Converted, WeightsError, WeightsFile
from maskrcnn_plus.weights.files import read_weights
from maskrcnn_plus.weights.prefixes import find_prefix, select_prefix

# In the order in which they are tried; the last one knows names of models here and takes any others for such.
_FORMATS = (torchvision, mmdet, classification, detectron2)
_HEADS = "roi_heads."
_ENOUGH = 0.95

logger = logging.getLogger(__name__)


def load_weights(
    model: nn.Module,
    source: str,
    *,
    class_names: Sequence[str] | None = None,
    strict: bool = False,
    allow_partial: bool = False,
) -> LoadReport:
    """Load a model's weights in place; the averaged ones (EMA) where the file has some.

    Formats: Detectron2 (this package's checkpoints among them) and Caffe2 Detectron, torchvision's and MMDetection's
    detectors, and bare classification networks of timm, torchvision and EfficientNet-PyTorch for the backbone. The
    format is recognised by the names of the tensors, below whatever prefix most of them fit (`find_prefix`).

    Args:
        model: any Detectron2-style model, or a part of one.
        source: a file, or what `maskrcnn_plus.checkpoints.sources.local_path` knows: `https://`, `detectron2://`,
            `torchvision://NAME`.
        class_names: of the model, in the order of its rows. Where the file names its classes too, the class heads take
            the rows of the classes of the same name, and keep the values they were built with for the others.
        strict: every tensor of the model must be loaded (prediction, evaluation). Otherwise, to train from, 95 % of
            the parameters and running statistics outside `roi_heads.`, or of the backbone if the file has nothing else.
        allow_partial: without `strict`, load whatever fits.

    Returns:
        What became of every tensor. Index tables and counters of batches may be missing from any file.

    Raises:
        WeightsError: naming the source, what does not fit and the likely cause, or what is wrong with the file or its
            numbers. The model is then as it was.
        ValueError: `class_names` are not as many as the classes of the model.
    """
    _check_class_names(model, class_names)
    file = read_weights(local_path(source))
    file, left_over, prefix = _strip_prefix(file, model)
    kind, converted = _convert(file, model)
    file_names = kind.class_names(file) if class_names is not None else None
    if strict and file_names:
        file_names = _names_for_strict(source, file_names, class_names)
    report = LoadReport(source=source, format=kind.NAME + (f", its names below {prefix!r}" if prefix else ""))
    tensors = _match(model, converted, file_names, class_names, report)
    scope = _scope(model, [name for name in converted if not name.startswith(_HEADS)])
    _complete(report, model, file, converted, scope)
    report.left_over += left_over
    contradiction = find_contradiction(
        report, converted, bare_backbone=bool(scope) or isinstance(model, Backbone), with_heads=strict
    )
    if not _is_enough(report, contradiction, strict, allow_partial):
        cause = contradiction or describe_mismatch(report, model, file, converted)
        wanted = (
            "Here every tensor of the model must be loaded."
            if strict
            else f"To start a training, {_ENOUGH:.0%} of what is outside the RoI heads, and all of its kind, must be "
            "loaded; with train.init_allow_partial=true whatever fits is taken."
        )
        raise WeightsError(f"{source} does not fit the model: {cause} {wanted}\n{report}")
    state = model.state_dict()
    # All numbers are checked before the first is copied.
    ready = {name: _cast(tensor, state[name], name, source) for name, tensor in tensors.items()}
    with torch.no_grad():
        for name, tensor in ready.items():
            state[name].copy_(tensor)
    return report


def _convert(file: WeightsFile, model: nn.Module) -> tuple[ModuleType, dict[str, Converted]]:
    """The format of a file, and its tensors under the names of the model."""
    kind = next(module for module in _FORMATS if module.matches(file.tensors.keys()))
    return kind, kind.convert(file, model)


def _strip_prefix(file: WeightsFile, model: nn.Module) -> tuple[WeightsFile, list[str], str]:
    """The file without what its names have before those of the model; the names that are not below it; the prefix."""
    prefix = find_prefix(file, lambda candidate: len(_convert(candidate, model)[1]))
    return select_prefix(file, prefix), [name for name in file.tensors if not name.startswith(prefix)], prefix


def read_classes(source: str) -> Classes | None:
    """The classes that weights say they are for, and their ids in the data set of the training where they say so.

    Args:
        source: as for `load_weights`.

    Raises:
        WeightsError: it cannot be read.
    """
    return get_classes(read_weights(local_path(source)))


def get_classes(file: WeightsFile) -> Classes | None:
    """As `read_classes`, of what was read."""
    names = next(module for module in _FORMATS if module.matches(file.tensors.keys())).class_names(file)
    if not names:
        return None
    ids = file.metadata.get("category_ids")
    is_whole = isinstance(ids, list) and len(ids) == len(names) and all(isinstance(i, int | float | str) for i in ids)
    return Classes(list(names), ids if is_whole else None)


def _check_class_names(model: nn.Module, class_names: Sequence[str] | None) -> None:
    num_classes = getattr(getattr(model, "roi_heads", None), "num_classes", None)
    if class_names is not None and num_classes is not None and len(class_names) != num_classes:
        raise ValueError(
            f"There are {len(class_names)} class names ({', '.join(map(str, class_names[:5]))}, ...), but the model "
            f"has {num_classes} classes: make dataset.thing_classes and the model's num_classes agree."
        )


def _names_for_strict(source: str, file_names: Sequence[str], class_names: Sequence[str]) -> Sequence[str] | None:
    """The file's names; None where they are others than the model's, so that classes are taken by position."""
    in_file, in_model = [[class_key(name) for name in names] for names in (file_names, class_names)]
    if len(in_file) != len(in_model) or set(in_file) == set(in_model):
        return file_names
    if any(name in in_file and in_file.index(name) != index for index, name in enumerate(in_model)):
        raise WeightsError(
            f"{source} was trained for the classes {', '.join(map(str, file_names[:10]))}; the config has "
            f"{', '.join(map(str, class_names[:10]))}: some are the same at other places, and some are others. Name "
            "those of the weights in dataset.thing_classes."
        )
    logger.warning(
        f"{source} was trained for the classes {', '.join(map(str, file_names[:10]))}; the config calls them "
        f"{', '.join(map(str, class_names[:10]))}. They are taken in this order."
    )
    return None


def _match(
    model: nn.Module,
    converted: Mapping[str, Converted],
    file_names: Sequence[str] | None,
    class_names: Sequence[str] | None,
    report: LoadReport,
) -> dict[str, Tensor]:
    """The tensors to copy, in the model's shapes, with their fate written into the report."""
    buffers = {name for name, _ in model.named_buffers()}
    layers = find_class_layers(model) if file_names and class_names else {}
    tensors = {}
    for name, initial in _get_tensors(model).items():
        if name not in converted:
            is_own = name in buffers and not initial.is_floating_point()
            (report.own if is_own else report.missing).append(name)
            continue
        stored, _, how = converted[name]
        rows = match_rows(layers[name], stored, initial, file_names, class_names) if name in layers else None
        complete = True
        if rows is not None:
            stored, complete = rows.tensor, rows.complete
            how = "; ".join(filter(None, (how, rows.how)))
        if stored.shape != initial.shape:
            report.other_shape[name] = (tuple(stored.shape), tuple(initial.shape))
            continue
        tensors[name] = stored
        if not complete:
            report.rows[name] = how
        elif how:
            report.transformed[name] = how
        else:
            report.loaded.append(name)
    return tensors


def _get_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _complete(
    report: LoadReport, model: nn.Module, file: WeightsFile, converted: Mapping[str, Converted], scope: str
) -> None:
    """Add to the report what became of the file's tensors, and the fractions of the model below `scope`."""
    came = [*report.loaded, *report.transformed, *report.rows]
    used = {source for name in came for source in converted[name].sources}
    report.used = [name for name in file.tensors if name in used]
    report.left_over = [name for name in file.tensors if name not in used]
    state = _get_tensors(model)
    needed = [name for name in state if not name.startswith(_HEADS) and name not in report.own]
    needed = [name for name in needed if state[name].is_floating_point()]
    needed = [name for name in needed if name.startswith(scope)]
    loaded = set(report.loaded) | set(report.transformed)
    got = [name for name in needed if name in loaded]
    total = sum(state[name].numel() for name in needed)
    if not needed:  # nothing but heads
        report.fraction = report.tensor_fraction = float(bool(came))
    else:
        report.fraction = sum(state[name].numel() for name in got) / max(total, 1)
        report.tensor_fraction = len(got) / len(needed)


def _scope(model: nn.Module, targets: Sequence[str]) -> str:
    """Prefix of the smallest backbone within the model that holds all targets; "" where they are more than one."""
    backbones = [f"{name}." for name, module in model.named_modules() if name and isinstance(module, Backbone)]
    fitting = [prefix for prefix in backbones if targets and all(name.startswith(prefix) for name in targets)]
    return max(fitting, key=len, default="")


def _is_enough(report: LoadReport, contradiction: str, strict: bool, allow_partial: bool) -> bool:
    if not (report.loaded or report.transformed or report.rows):
        return False
    if strict:
        return not report.incomplete and not contradiction
    return allow_partial or (min(report.fraction, report.tensor_fraction) >= _ENOUGH and not contradiction)


def _cast(tensor: Tensor, target: Tensor, name: str, source: str) -> Tensor:
    """The numbers in the type of the model's tensor, which must be able to hold them."""
    cast = tensor.to(target.dtype)
    if torch.isnan(tensor).any():
        raise WeightsError(f"{source}: {name} holds NaN; the training that wrote it has diverged.")
    if bool((torch.isinf(tensor) & ~torch.isinf(target)).any()):  # a mask of the model's own may be infinite
        raise WeightsError(
            f"{source}: {name} holds infinite numbers; the training that wrote it has diverged, or numbers were too "
            "large for the float16 that they were saved in."
        )
    if target.is_floating_point():
        if bool((torch.isinf(cast) & ~torch.isinf(tensor)).any()):
            raise WeightsError(f"{source}: numbers of {name} are too large for the model's {target.dtype}.")
    elif not torch.equal(cast.to(tensor.dtype), tensor):
        raise WeightsError(f"{source}: numbers of {name} do not fit the model's {target.dtype}.")
    return cast
