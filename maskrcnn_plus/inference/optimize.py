"""A trained model made faster for prediction, with the same results.

Batch norms become part of the convolutions before them. On CPUs 3 x 3 convolutions run by Winograd's method, others
take the ReLU or the sum that follows along, the mask head computes only the masks that are wanted, and box heads take
features as they lie in memory.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from timm.layers import BatchNormAct2d, Conv2dSame, SyncBatchNormAct
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from maskrcnn_plus.backbones.freezing import FrozenBatchNormAct2d
from maskrcnn_plus.errors import first_line
from maskrcnn_plus.inference.mask_head import SelectiveMaskHead
from maskrcnn_plus.inference.onednn import ActivatedConv2d, FusedBottleneck, PointwiseConv2d
from maskrcnn_plus.ops.winograd import WinogradConv2d
from maskrcnn_plus.roi.pooler import PyramidROIAlign

__all__ = ["fold_batch_norms", "optimize_for_inference"]

# Subclasses may do more than these, and stay as they are.
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, NaiveSyncBatchNorm, FrozenBatchNorm2d)
_NORMS_WITH_ACTIVATION = (BatchNormAct2d, SyncBatchNormAct, FrozenBatchNormAct2d)
_PLAIN_CONVS = (nn.Conv2d, Conv2dSame)
_TOLERANCE = 1e-4


def optimize_for_inference(model: nn.Module) -> nn.Module:
    """Make a Detectron2 model faster for prediction, in place; it cannot be trained afterwards.

    Scores, boxes and masks stay those of the model in evaluation mode to a relative 1e-4.

    Args:
        model: with its final weights, on its device, in its memory format.

    Returns:
        The model, in evaluation mode and without gradients.
    """
    model.eval().requires_grad_(False)
    _, activations = _fold_norms(model)
    heads = getattr(model, "roi_heads", None)
    if SelectiveMaskHead.takes(getattr(heads, "mask_head", None)):
        heads.mask_head = SelectiveMaskHead(heads.mask_head)
    flatten_pixels(heads)
    activated = {}
    for conv, activation in activations.items():
        if not WinogradConv2d.takes(conv) and ActivatedConv2d.takes(conv, activation):
            activated |= {conv: ActivatedConv2d(conv, activation), activation: nn.Identity()}
    _replace(model, activated)
    for fast in (WinogradConv2d, PointwiseConv2d, FusedBottleneck):
        _replace(model, {module: fast(module) for module in model.modules() if fast.takes(module)})
    return model


def fold_batch_norms(model: nn.Module) -> int:
    """Put batch norms into the convolutions before them, in place.

    Detectron2's `Conv2d` says which norm is its own. In the rest of the backbone (timm's networks) they are found by
    running it on a small random image: a norm is folded if its input is the output of a convolution that nothing else
    reads. The outputs before and after are compared, in float64: it does not matter then whether this device computes
    float32 in TensorFloat-32 or bfloat16.

    Args:
        model: in evaluation mode; its attribute `backbone`, if any, takes images [N, C, H, W].

    Returns:
        The number of norms that are gone. Others stay: group norms, norms before a convolution, and batch norms that
        take the statistics of their input even in evaluation mode.

    Warns:
        UserWarning: the backbone's outputs changed by more than a relative 1e-4, and its norms are back in place; or
            the backbone does not run in float64.
    """
    count, traced = _fold_norms(model)
    return count + len(traced)


def _fold_norms(model: nn.Module) -> tuple[int, dict[nn.Module, nn.Module]]:
    """`fold_batch_norms`: norms that were their convolution's, and what stands in place of each that was found."""
    count = 0
    for conv in model.modules():
        if type(conv) is Conv2d and _is_foldable(conv.norm):
            conv.weight, conv.bias = _folded(conv, conv.norm)
            conv.norm = _get_activation(conv.norm)
            count += 1
    if not isinstance(getattr(model, "backbone", None), nn.Module):
        return count, {}
    return count, _fold_traced(model.backbone, len(getattr(model, "pixel_mean", (0, 0, 0))))


@torch.no_grad()
def _fold_traced(backbone: nn.Module, channels: int) -> dict[nn.Module, nn.Module]:
    """Fold the norms that a run of the backbone shows to follow a convolution: by convolution, what is left of each."""
    if not any(map(_is_foldable, backbone.modules())):
        return {}
    side = 2 * max(getattr(backbone, "size_divisibility", 0), 32)
    parameter = next(backbone.parameters(), torch.zeros(0))
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, channels, side, side, generator=generator).to(parameter.device, torch.float64)
    try:
        with _in_float64(backbone):
            pairs, before = _trace(backbone, image)
    except Exception as error:  # of modules that insist on another type or size
        problem = f"batch norms of the backbone stay, as it does not run on {side} x {side} px in float64"
        problem += f" ({first_line(error)})"
        warnings.warn(problem, stacklevel=5)
        return {}
    stored = {conv: (conv.weight, conv.bias) for conv in pairs}
    for conv, norm in pairs.items():
        conv.weight, conv.bias = _folded(conv, norm)
    rest = {norm: _get_activation(norm) or nn.Identity() for norm in pairs.values()}
    _replace(backbone, rest)
    with _in_float64(backbone):
        error = _largest_change(before, _get_tensors(backbone(image)))
    if error <= _TOLERANCE:
        return {conv: rest[norm] for conv, norm in pairs.items()}
    warnings.warn(
        f"batch norms of the backbone stay as they are, since folding them changes its output by {error:.1e}",
        stacklevel=5,
    )
    _replace(backbone, {new: old for old, new in rest.items()})
    for conv, (weight, bias) in stored.items():
        conv.weight, conv.bias = weight, bias
    return {}


@contextmanager
def _in_float64(module: nn.Module) -> Iterator[None]:
    """The module with all its numbers in float64, of the same values; afterwards it has the very tensors of before."""
    tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
    before = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.double()
        yield
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data = data


def _trace(backbone: nn.Module, image: Tensor) -> tuple[dict[nn.Module, nn.Module], list[Tensor]]:
    """Convolutions with the norm that alone reads their output, and the outputs of the backbone."""
    produced: dict[int, tuple[nn.Module, Tensor]] = {}  # by the address of a convolution's output, which is kept alive
    pairs: list[tuple[nn.Module, nn.Module, int]] = []
    calls: Counter[nn.Module] = Counter()
    reads = _Reads()

    def after_conv(conv: nn.Module, _: tuple, output: Tensor) -> None:
        calls[conv] += 1
        produced[_address(output)] = (conv, output)
        reads.counts[_address(output)] = 0  # of memory that was another tensor's before

    def before_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        conv, output = produced.get(_address(inputs[0]), (None, None))
        if conv is not None and output.shape == inputs[0].shape:
            pairs.append((conv, norm, _address(output)))

    hooks = []
    for module in backbone.modules():
        if type(module) in _PLAIN_CONVS:
            hooks.append(module.register_forward_hook(after_conv))
        elif _is_foldable(module):
            hooks.append(module.register_forward_pre_hook(before_norm))
    try:
        with reads:
            outputs = _get_tensors(backbone(image))
    finally:
        for hook in hooks:
            hook.remove()
    returned = {_address(output) for output in outputs}
    folded = {
        conv: norm
        for conv, norm, address in pairs
        if calls[conv] == calls[norm] == 1 and reads.counts[address] == 1 and address not in returned
    }
    return folded, outputs


class _Reads(TorchDispatchMode):
    """Counts the operators that read each memory address."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts.update({_address(tensor) for tensor in _flatten((args, *(kwargs or {}).values()))})
        return func(*args, **(kwargs or {}))


def _flatten(values: Iterable) -> Iterable[Tensor]:
    """The tensors in nested lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _flatten(value)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _get_tensors(outputs: dict[str, Tensor] | list[Tensor] | Tensor) -> list[Tensor]:
    return list(_flatten(outputs.values() if isinstance(outputs, dict) else [outputs]))


def _largest_change(before: list[Tensor], after: list[Tensor]) -> float:
    """Largest difference in proportion to the largest value of each output."""
    changes = [(a - b).abs().max() / b.abs().max().clamp(min=1e-12) for a, b in zip(after, before, strict=True)]
    return max(change.item() for change in changes)


def _is_foldable(norm: nn.Module | None) -> bool:
    """Whether it is an affine map in evaluation mode."""
    return type(norm) in (*_NORMS, *_NORMS_WITH_ACTIVATION) and norm.running_var is not None


def _get_activation(norm: nn.Module) -> nn.Module | None:
    """What a batch norm does after its affine map."""
    if type(norm) not in _NORMS_WITH_ACTIVATION:
        return None
    return nn.Sequential(*(getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)))


def _folded(conv: nn.Module, norm: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight [K, C, kh, kw] and bias [K] of the convolution followed by the norm, computed in float64."""
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)  # [K]
    scale = scale if norm.weight is None else scale * norm.weight.double()
    bias = -norm.running_mean.double() if conv.bias is None else conv.bias.double() - norm.running_mean.double()
    bias = bias * scale if norm.bias is None else bias * scale + norm.bias.double()
    weight = conv.weight.double() * scale[:, None, None, None]
    folded = (tensor.detach().to(conv.weight.dtype) for tensor in (weight, bias))
    return tuple(nn.Parameter(tensor, requires_grad=False) for tensor in folded)


def _replace(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Exchange modules below `model`, also in plain lists, where Detectron2's FPN and mask head keep theirs."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in replacements:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, replacements[module])
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, list):
                value[:] = [replacements.get(v, v) if isinstance(v, nn.Module) else v for v in value]


class FlattenPixels(nn.Module):
    """[R, C, S, S] -> [R, S * S * C]: in channels_last memory no copy, as `nn.Flatten` is none in contiguous memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Flatten the features of RoIs."""
        return x.permute(0, 2, 3, 1).flatten(1)


def flatten_pixels(roi_heads: nn.Module) -> None:
    """Put `FlattenPixels` into each `FastRCNNConvFCHead` of RoI heads, with the same results, in place.

    Only behind a pooler that keeps the memory format of its maps; heads that have one stay as they are.
    """
    pooler, box_head = getattr(roi_heads, "box_pooler", None), getattr(roi_heads, "box_head", None)
    for head in box_head if isinstance(box_head, nn.ModuleList) else [box_head]:  # a cascade has several
        is_known = type(head) is FastRCNNConvFCHead and head.fcs and type(head.flatten) is nn.Flatten
        if isinstance(pooler, PyramidROIAlign) and is_known:
            weight = head.fcs[0].weight.detach().unflatten(1, (-1, *pooler.output_size))  # [F, C, S, S]
            head.fcs[0].weight = nn.Parameter(weight.permute(0, 2, 3, 1).flatten(1), requires_grad=False)
            head.flatten = FlattenPixels()
