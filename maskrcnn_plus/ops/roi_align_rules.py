"""The operators `maskrcnn_plus::roi_align` and `::roi_align_backward`: which kernel runs where, and their rules.

On CPUs runs the compiled kernel (`csrc/cpu/roi_align.cpp`), on GPUs the Triton kernel where Triton and the type allow,
anywhere else torchvision's or the reference map by map. Autograd, autocast, vmap and fake tensors are the same for all.

Shorthand: K boxes, L maps, N images, C channels, S samples of a vmap.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from maskrcnn_plus.ops import extension
from maskrcnn_plus.ops.roi_align_fallback import (
    backward_fallback,
    check_arguments,
    forward_fallback,
    in_memory_format,
    split_sizes,
)

_TRITON_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def _forward_cuda(features, rois, levels, scales, height, width, sampling_ratio, aligned, channels_last):
    if features[0].dtype not in _TRITON_TYPES or not extension.has_triton(rois.device):
        return forward_fallback(features, rois, levels, scales, height, width, sampling_ratio, aligned, channels_last)
    from maskrcnn_plus.ops.roi_align_triton import roi_align_triton

    check_arguments(features, rois, levels, (height, width), scales, sampling_ratio)
    pooled = roi_align_triton(features, rois, levels, scales, (height, width), sampling_ratio, aligned)
    return in_memory_format(pooled, channels_last)


def _backward_cuda(grad, rois, levels, scales, sizes, sampling_ratio, aligned, channels_last):
    if grad.dtype not in _TRITON_TYPES or not extension.has_triton(rois.device):
        return backward_fallback(grad, rois, levels, scales, sizes, sampling_ratio, aligned, channels_last)
    from maskrcnn_plus.ops.roi_align_triton import roi_align_backward_triton

    grads = roi_align_backward_triton(grad, rois, levels, scales, split_sizes(sizes), sampling_ratio, aligned)
    return [in_memory_format(each, channels_last) for each in grads]


def _autocast(device_type, features, rois, levels, *options):
    """Maps in the widest of their types, boxes in float32 at least: half precision is too coarse for coordinates."""
    kind = functools.reduce(torch.promote_types, [feature.dtype for feature in features])
    features, rois = [feature.to(kind) for feature in features], rois.to(torch.promote_types(kind, torch.float32))
    with torch.autocast(device_type, enabled=False):
        return torch.ops.maskrcnn_plus.roi_align(features, rois, levels, *options)


extension.LIBRARY.impl("roi_align", forward_fallback, "CompositeExplicitAutograd")
extension.LIBRARY.impl("roi_align_backward", backward_fallback, "CompositeExplicitAutograd")
extension.LIBRARY.impl("roi_align", _forward_cuda, "CUDA")
extension.LIBRARY.impl("roi_align_backward", _backward_cuda, "CUDA")
for _device_type in ("cpu", "cuda"):
    extension.LIBRARY.impl("roi_align", functools.partial(_autocast, _device_type), f"Autocast{_device_type.upper()}")


@torch.library.register_fake("maskrcnn_plus::roi_align")
def _(features, rois, levels, scales, height, width, sampling_ratio, aligned, channels_last):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (rois.shape[0], features[0].shape[1], height, width)
    return torch.empty(shape, dtype=features[0].dtype, device=features[0].device, memory_format=memory_format)


@torch.library.register_fake("maskrcnn_plus::roi_align_backward")
def _(grad, rois, levels, scales, sizes, sampling_ratio, aligned, channels_last):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    options = {"dtype": grad.dtype, "device": grad.device, "memory_format": memory_format}
    return [torch.empty(shape, **options) for shape in split_sizes(sizes)]


def _remember(ctx, inputs, output):
    features, rois, levels, *ctx.options, ctx.channels_last = inputs
    ctx.save_for_backward(rois, *([] if levels is None else [levels]))
    ctx.sizes = [size for feature in features for size in feature.shape]


def _backward(ctx, grad):
    rois, *levels = ctx.saved_tensors
    scales, _, _, sampling_ratio, aligned = ctx.options
    grads = torch.ops.maskrcnn_plus.roi_align_backward(
        grad, rois, levels[0] if levels else None, scales, ctx.sizes, sampling_ratio, aligned, ctx.channels_last
    )
    return grads, *[None] * 8


def _remember_grad(ctx, inputs, output):
    grad, rois, levels, ctx.scales, _, *ctx.options, ctx.channels_last = inputs
    ctx.save_for_backward(rois, *([] if levels is None else [levels]))
    ctx.output_size = grad.shape[2:]


def _double_backward(ctx, grads):
    """The backward is linear in its gradient, and its transpose is the forward."""
    rois, *levels = ctx.saved_tensors
    grad = torch.ops.maskrcnn_plus.roi_align(
        grads, rois, levels[0] if levels else None, ctx.scales, *ctx.output_size, *ctx.options, ctx.channels_last
    )
    return grad, *[None] * 7


def _vmap(info, in_dims, features, rois, levels, *options):
    """All samples in one call: the images of one after those of another."""
    samples, (map_dims, rois_dim, levels_dim) = info.batch_size, in_dims[:3]

    def in_front(tensor, dim):
        return tensor.expand(samples, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

    rois = in_front(rois, rois_dim)  # [S, K, 5]
    if any(dim is not None for dim in map_dims):
        features = [in_front(*each) for each in zip(features, map_dims, strict=True)]  # [S, N, C, H_l, W_l]
        rois, images = rois.to(torch.promote_types(rois.dtype, torch.float32)), features[0].shape[1]
        index, *corners = rois.unbind(2)
        inside = (index >= 0) & (index < images)  # not an image of another sample
        first = torch.arange(samples, device=index.device)[:, None] * images
        rois = torch.stack([torch.where(inside, index + first, torch.nan), *corners], dim=2)
        features = [feature.flatten(0, 1) for feature in features]
    levels = None if levels is None else in_front(levels, levels_dim).flatten()  # [S * K]
    output = torch.ops.maskrcnn_plus.roi_align(features, rois.flatten(0, 1), levels, *options)
    return output.unflatten(0, rois.shape[:2]), 0


def _vmap_backward(info, in_dims, *args):
    samples = []
    for sample in range(info.batch_size):
        of_sample = [
            each.select(dim, sample) if isinstance(each, Tensor) and dim is not None else each
            for each, dim in zip(args, in_dims, strict=True)
        ]
        samples.append(torch.ops.maskrcnn_plus.roi_align_backward(*of_sample))
    results = [torch.stack(of_map) for of_map in zip(*samples, strict=True)]
    return results, [0] * len(results)


torch.library.register_vmap("maskrcnn_plus::roi_align", _vmap)
torch.library.register_vmap("maskrcnn_plus::roi_align_backward", _vmap_backward)
torch.library.register_autograd("maskrcnn_plus::roi_align", _backward, setup_context=_remember)
torch.library.register_autograd("maskrcnn_plus::roi_align_backward", _double_backward, setup_context=_remember_grad)
