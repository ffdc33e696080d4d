"""RoIAlign as a public function, on `torch.ops.maskrcnn_plus.roi_align`, which takes all maps of a pyramid in one call.

`docs/roi_align.md` explains the method and says which kernel runs where.

Shorthand: K boxes, L maps, N images, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.fx
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

import maskrcnn_plus.ops.roi_align_rules  # noqa: F401 - defines the operator


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """RoIAlign (He et al., Mask R-CNN, 2017, Sec. 3) with torchvision's semantics.

    Args:
        input: [N, C, H, W]; `channels_last` memory is used as it is, and the fastest.
        boxes: [K, 5], each (batch index, x0, y0, x1, y1) in pixels of the image, or a list of [K_i, 4], one an image.
            Of the input's type, or float32 beside a half-precision input.
        output_size: bins (height, width), or one number for both.
        spatial_scale: pixels of the map for one of the image, e.g. 0.25 at stride 4.
        sampling_ratio: samples a bin and axis, at most 4096; 0 or less takes one a pixel of the map, rounded up.
        aligned: shift the boxes by half a pixel, so that pixel i covers [i, i + 1).

    Returns:
        [K, C, height, width] in the input's type and memory format; differentiable with respect to `input`.

    Raises:
        ValueError, TypeError: wrong shapes or types; on a CPU also a box that is not finite or whose batch index is not
            that of an image, the message has the index of the first one. A GPU is not waited for: there the bins of
            such a box are NaN.
    """
    given = (input, boxes) if isinstance(boxes, Tensor | torch.fx.Proxy) else (input, *boxes)
    if has_torch_function(given):  # torch.fx records the call
        options = (output_size, spatial_scale, sampling_ratio, aligned)
        return handle_torch_function(roi_align, given, input, boxes, *options)
    rois = _as_rois(boxes, input)
    return roi_align_pyramid([input], rois, None, output_size, [spatial_scale], sampling_ratio, aligned)


def roi_align_pyramid(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    output_size: int | Sequence[int],
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
    features = list(features)
    given = (*features, rois, levels)
    if has_torch_function(given):  # torch.fx records the call
        options = (output_size, spatial_scales, sampling_ratio, aligned)
        return handle_torch_function(roi_align_pyramid, given, features, rois, levels, *options)
    height, width = pair_of_bins(output_size)
    sampling_ratio = max(whole_number(sampling_ratio, "sampling_ratio"), 0)
    _check(features, rois, levels)
    scales = [float(scale) for scale in spatial_scales]
    first = features[0]
    channels_last = _is_channels_last(first) and not first.is_contiguous()
    return torch.ops.maskrcnn_plus.roi_align(
        features, rois, levels, scales, height, width, sampling_ratio, aligned, channels_last
    )


def whole_number(value: int | float, name: str) -> int:
    """A number without a fraction as an int, whatever its type: 3, 3.0 and np.int64(3).

    Raises:
        ValueError: it is no whole number; the message has its name.
    """
    if isinstance(value, int | torch.SymInt):
        return value
    try:
        if value == (whole := int(value)):
            return whole
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{name} must be a whole number, got {value!r}.")


def pair_of_bins(output_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) in bins, from one number for both or from two.

    Raises:
        ValueError: it is neither a positive number nor two of them.
    """
    sides = tuple(output_size) if isinstance(output_size, Iterable) else (output_size, output_size)
    if len(sides) != 2:
        raise ValueError(f"output_size must be a positive number or a pair of them, got {output_size!r}.")
    height, width = (whole_number(side, "output_size") for side in sides)
    if height <= 0 or width <= 0:
        raise ValueError(f"output_size must be positive, a number or a pair of them, got {output_size!r}.")
    return height, width


def _is_channels_last(maps: Tensor) -> bool:
    """`is_contiguous(memory_format=torch.channels_last)`, which torch.vmap does not know."""
    expected = 1
    for dim in (1, 3, 2, 0) if maps.dim() == 4 else ():
        if maps.shape[dim] != 1:
            if maps.stride(dim) != expected:
                return False
            expected = expected * maps.shape[dim]
    return maps.dim() == 4


def _as_rois(boxes: Tensor | Sequence[Tensor], input: Tensor) -> Tensor:
    """[K, 5] from either format."""
    if isinstance(boxes, Tensor):
        return boxes
    if input.dim() == 4 and len(boxes) != input.shape[0]:
        raise ValueError(f"roi_align: {len(boxes)} lists of boxes for {input.shape[0]} images.")
    for index, entry in enumerate(boxes):
        if not isinstance(entry, Tensor) or entry.dim() != 2 or entry.shape[1] != 4:
            raise ValueError(f"roi_align: the boxes of image {index} must be a tensor [K, 4].")
    return boxes_to_rois(boxes, input)


def boxes_to_rois(boxes: Sequence[Tensor], features: Tensor) -> Tensor:
    """The boxes of all images in one tensor, without a synchronisation.

    Args:
        boxes: N tensors [K_i, 4].
        features: [N, C, H, W], their maps.

    Returns:
        [K, 5], each (image index, x0, y0, x1, y1), at least in float32: half precision does not hold the indices of
        many images.
    """
    if not boxes:
        return features.new_zeros(0, 5, dtype=torch.promote_types(features.dtype, torch.float32))
    boxes = [each.to(torch.promote_types(each.dtype, torch.float32)) for each in boxes]
    return torch.cat([torch.cat([torch.full_like(b[:, :1], i), b], dim=1) for i, b in enumerate(boxes)])


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
