"""RoIAlign by its definition in plain PyTorch: the truth that the operator is compared with.

He et al., Mask R-CNN (2017), Sec. 3, with torchvision's conventions: a bin is the mean of bilinear samples on a regular
grid; a sample more than one pixel outside the map counts 0, one within a pixel of its border takes the border's value.
Differentiable to any order, on every device, in every floating type; slow. Coordinates are float64, sums float32 at
least.

Shorthand: K boxes, N images, C channels, [H, W] map, p and q a bin's row and column, g samples a bin and axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_SAMPLING_RATIO = 4096  # samples a bin and axis that an operator takes, in csrc/cpu/roi_align_check.h too


def roi_align_reference(
    input: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """RoIAlign of every box.

    Args:
        input: [N, C, H, W].
        rois: [K, 5], each (batch index, x0, y0, x1, y1) in pixels of the image.
        output_size: bins (height, width).
        spatial_scale: pixels of the map for one of the image.
        sampling_ratio: samples a bin and axis; 0 takes one a pixel of the map, rounded up.
        aligned: shift the boxes by half a pixel, so that pixel i covers [i, i + 1).

    Returns:
        [K, C, height, width].
    """
    empty = input.sum(dim=(0, 2, 3), keepdim=True)[0, :, 0, 0] * 0  # keeps the graph where there are no boxes
    boxes = rois.double().tolist()
    pooled = [_one(input, roi, output_size, spatial_scale, sampling_ratio, aligned) for roi in boxes]
    if not pooled:
        return empty[None, :, None, None].expand(1, -1, *output_size)[:0]  # [0, C, height, width]
    return torch.stack(pooled)


def roi_align_backward_reference(
    grad: Tensor,
    rois: Tensor,
    shape: Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """The gradient of the map: the transpose of the forward, which is linear in the map.

    Args:
        grad: [K, C, height, width], of the output.
        shape: (N, C, H, W) of the map.
        rois, spatial_scale, sampling_ratio, aligned: see `roi_align_reference`.

    Returns:
        [N, C, H, W], added up box by box.
    """
    result = grad.new_zeros(tuple(shape))
    bins = (grad.shape[2], grad.shape[3])
    for roi, of_box in zip(rois.double().tolist(), grad, strict=True):
        rows, columns = _separate(roi, bins, spatial_scale, sampling_ratio, aligned, shape)
        result[int(roi[0])] += torch.einsum("ph,cpq,qw->chw", rows.to(grad), of_box, columns.to(grad))
    return result


def _one(
    input: Tensor, roi: list[float], output_size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    image = input[int(roi[0])]  # [C, H, W]
    rows, columns = _separate(roi, output_size, scale, sampling_ratio, aligned, input.shape)
    kind = torch.promote_types(input.dtype, torch.float32)
    rows, columns = rows.to(input.device, kind), columns.to(input.device, kind)
    return torch.einsum("ph,chw,qw->cpq", rows, image.to(kind), columns).to(input.dtype)  # [C, P, Q]


def _separate(
    roi: list[float],
    output_size: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
    shape: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Weights of a map's rows [P, H] and columns [Q, W]: the mean over a grid is that over rows of those of columns."""
    offset = 0.5 if aligned else 0.0
    x0, y0, x1, y1 = (value * scale - offset for value in roi[1:])
    width, height = x1 - x0, y1 - y0
    if not aligned:
        width, height = max(width, 1.0), max(height, 1.0)
    rows = _weights(y0, height, output_size[0], sampling_ratio, shape[2])
    return rows, _weights(x0, width, output_size[1], sampling_ratio, shape[3])


def _weights(start: float, length: float, bins: int, sampling_ratio: int, size: int) -> Tensor:
    """Mean bilinear weights of the pixels of one axis over the samples of each bin, float64 [bins, size].

    Only the samples that may lie on the map are made: a box of any size takes the time of the map's.
    """
    weights = torch.zeros(bins, size, dtype=torch.float64)
    spacing = length / bins
    if size == 0 or not math.isfinite(start) or not math.isfinite(spacing):
        return weights  # beyond all numbers is beyond the map
    count = sampling_ratio if sampling_ratio > 0 else min(max(math.ceil(spacing), 0), 10**15)
    if count == 0:
        return weights
    origin = start + torch.arange(bins, dtype=torch.float64)[:, None] * spacing  # [bins, 1]
    step = spacing / count
    first, made = torch.zeros_like(origin), count
    if step > 0:
        first = ((-1 - origin) / step - 2).floor().clamp(0, count)  # [bins, 1]
        made = min(count, math.ceil((size + 1) / step) + 4)
    index = first + torch.arange(made, dtype=torch.float64)  # [bins, g]
    at = origin + (index + 0.5) * step
    share = ((at >= -1) & (at <= size) & (index < count)).double() / count
    at = at.clamp(0, size - 1)
    low = at.long()
    weights.scatter_add_(1, low, share * (1 - (at - low)))
    return weights.scatter_add_(1, (low + 1).clamp(max=size - 1), share * (at - low))
