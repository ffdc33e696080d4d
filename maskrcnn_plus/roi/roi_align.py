"""RoIAlign as a public function, on `torch.ops.maskrcnn_plus.roi_align`, with its autograd and fake rules.

The operator takes all maps of a pyramid in one call. It runs on CPUs; other devices use torchvision's kernel, or the
reference where deterministic algorithms are asked for. `docs/roi_align.md` explains the method.

Shorthand: K boxes, L maps, N images, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torchvision
from torch import Tensor

from maskrcnn_plus import extension
from maskrcnn_plus.roi.reference import roi_align_reference


def roi_align(
    input: Tensor,
    rois: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """RoIAlign (He et al., Mask R-CNN, 2017, Sec. 3) with torchvision's semantics.

    Args:
        input: [N, C, H, W]; `channels_last` memory is used as it is, and the fastest.
        rois: [K, 5], each (batch index, x0, y0, x1, y1) in pixels of the image, or a list of [K_i, 4], one an image.
            Of the input's type, or float32 beside a half-precision input.
        output_size: bins (height, width), or one number for both.
        spatial_scale: pixels of the map for one of the image, e.g. 0.25 at stride 4.
        sampling_ratio: samples a bin and axis; 0 takes one a pixel of the map, rounded up.
        aligned: shift the boxes by half a pixel, so that pixel i covers [i, i + 1).

    Returns:
        [K, C, height, width] in the input's type and memory format; differentiable with respect to `input`.

    Raises:
        ValueError, TypeError: wrong shapes or types, a box that is not finite or whose batch index is not that of an
            image; the message has the index of the first one.
    """
    rois = _as_rois(rois, input)
    return roi_align_pyramid([input], rois, None, output_size, [spatial_scale], sampling_ratio, aligned)


def roi_align_pyramid(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    output_size: int | tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """RoIAlign of every box on its own map of a feature pyramid, in one operator call.

    Args:
        features: L maps [N, C, H_l, W_l] of one type.
        rois: [K, 5], see `roi_align`.
        levels: int64 [K], the map of each box, 0 <= level < L; None for the only one.
        spatial_scales: of each map.
        output_size, sampling_ratio, aligned: see `roi_align`.

    Returns:
        [K, C, height, width], row k of box k.

    Raises:
        ValueError, TypeError: see `roi_align`; also a level outside the pyramid.
    """
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    features = list(features)
    _check(features, rois, levels)
    scales = [float(scale) for scale in spatial_scales]
    first = features[0]
    if first.device.type != "cpu" or not extension.is_available():
        if first.device.type == "cpu":
            extension.warn_once("roi_align")
        deterministic = first.device.type != "cpu" and torch.are_deterministic_algorithms_enabled()
        align = roi_align_reference if deterministic else torchvision.ops.roi_align
        return _map_by_map(align, features, rois, levels, (height, width), scales, sampling_ratio, aligned)
    channels_last = first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous()
    return torch.ops.maskrcnn_plus.roi_align(
        features, rois, levels, scales, height, width, sampling_ratio, aligned, channels_last
    )


def _as_rois(rois: Tensor | Sequence[Tensor], input: Tensor) -> Tensor:
    """[K, 5] from either format."""
    if isinstance(rois, Tensor):
        return rois
    boxes = list(rois)
    if input.dim() == 4 and len(boxes) != input.shape[0]:
        raise ValueError(f"roi_align: {len(boxes)} lists of boxes for {input.shape[0]} images.")
    for index, entry in enumerate(boxes):
        if not isinstance(entry, Tensor) or entry.dim() != 2 or entry.shape[1] != 4:
            raise ValueError(f"roi_align: the boxes of image {index} must be a tensor [K, 4].")
    with_index = [torch.cat([torch.full_like(b[:, :1], i), b], dim=1) for i, b in enumerate(boxes)]  # [K_i, 5]
    return torch.cat(with_index) if with_index else input.new_zeros(0, 5)


def _check(features: list[Tensor], rois: Tensor, levels: Tensor | None) -> None:
    """Types and devices; the operator checks shapes and values."""
    if not features:
        raise ValueError("roi_align: there is no feature map.")
    first = features[0]
    if not first.is_floating_point() or not rois.is_floating_point():
        raise TypeError(f"roi_align: maps and boxes must be floating point, got {first.dtype} and {rois.dtype}.")
    narrow = first.dtype in (torch.float16, torch.bfloat16) and rois.dtype == torch.float32
    autocast = torch.is_autocast_enabled(first.device.type)  # casts the boxes
    if rois.dtype != first.dtype and not narrow and not autocast:
        raise TypeError(f"roi_align: boxes are {rois.dtype}, maps {first.dtype}: give them one type.")
    for what, other in (("boxes", rois), ("levels", levels), *((f"map {i}", f) for i, f in enumerate(features))):
        if other is not None and other.device != first.device:
            raise ValueError(f"roi_align: {what} on {other.device}, the first map on {first.device}.")


def _map_by_map(
    align: Callable[..., Tensor],
    features: list[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    output_size: tuple[int, int],
    scales: list[float],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """The pyramid by an operator for one map: torchvision's, or the reference."""
    rois = rois.to(features[0].dtype)
    if levels is None:
        return align(features[0], rois, output_size, scales[0], sampling_ratio, aligned)
    output = features[0].new_zeros(len(rois), features[0].shape[1], *output_size)
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        (chosen,) = torch.nonzero(levels == level, as_tuple=True)
        output = output.index_put((chosen,), align(feature, rois[chosen], output_size, scale, sampling_ratio, aligned))
    return output


def _register() -> None:
    """Fake, autograd and autocast rules of the compiled operators."""

    @torch.library.register_fake("maskrcnn_plus::roi_align")
    def _(features, rois, levels, scales, height, width, sampling_ratio, aligned, channels_last):
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        shape = (rois.shape[0], features[0].shape[1], height, width)
        return torch.empty(shape, dtype=features[0].dtype, device=features[0].device, memory_format=memory_format)

    @torch.library.register_fake("maskrcnn_plus::roi_align_backward")
    def _(grad, rois, levels, scales, sizes, sampling_ratio, aligned, channels_last):
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        shapes = [sizes[i : i + 4] for i in range(0, len(sizes), 4)]
        return [torch.empty(s, dtype=grad.dtype, device=grad.device, memory_format=memory_format) for s in shapes]

    def remember(ctx, inputs, output):
        features, rois, levels, *ctx.options, ctx.channels_last = inputs
        ctx.save_for_backward(rois, *([] if levels is None else [levels]))
        ctx.sizes = [size for feature in features for size in feature.shape]

    def backward(ctx, grad):
        rois, *levels = ctx.saved_tensors
        scales, _, _, sampling_ratio, aligned = ctx.options
        grads = torch.ops.maskrcnn_plus.roi_align_backward(
            grad, rois, levels[0] if levels else None, scales, ctx.sizes, sampling_ratio, aligned, ctx.channels_last
        )
        return grads, *[None] * 8

    def remember_grad(ctx, inputs, output):
        grad, rois, levels, ctx.scales, _, *ctx.options, ctx.channels_last = inputs
        ctx.save_for_backward(rois, *([] if levels is None else [levels]))
        ctx.output_size = grad.shape[2:]

    def double_backward(ctx, grads):
        """The backward is linear in its gradient, and its transpose is the forward."""
        rois, *levels = ctx.saved_tensors
        grad = torch.ops.maskrcnn_plus.roi_align(
            grads, rois, levels[0] if levels else None, ctx.scales, *ctx.output_size, *ctx.options, ctx.channels_last
        )
        return grad, *[None] * 7

    torch.library.register_autograd("maskrcnn_plus::roi_align", backward, setup_context=remember)
    torch.library.register_autograd("maskrcnn_plus::roi_align_backward", double_backward, setup_context=remember_grad)


if extension.is_available():
    _register()
