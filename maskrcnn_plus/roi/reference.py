"""RoIAlign by its definition in plain PyTorch: the truth that the operator is compared with.

He et al., Mask R-CNN (2017), Sec. 3, with torchvision's conventions: a bin is the mean of bilinear samples on a regular
grid; a sample more than one pixel outside the map counts 0, one within a pixel of its border takes the border's value.
Differentiable to any order, on every device, in every floating type; slow.

Shorthand: K boxes, N images, C channels, [H, W] map, p and q a bin's row and column, g samples a bin and axis.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
    pooled = [_one(input, roi, output_size, spatial_scale, sampling_ratio, aligned) for roi in rois]
    if not pooled:
        return empty[None, :, None, None].expand(1, -1, *output_size)[:0]  # [0, C, height, width]
    return torch.stack(pooled)


def _one(
    input: Tensor, roi: Tensor, output_size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    image = input[int(roi[0])]  # [C, H, W]
    offset = 0.5 if aligned else 0.0
    x0, y0, x1, y1 = (value.item() * scale - offset for value in roi[1:].double())
    width, height = x1 - x0, y1 - y0
    if not aligned:
        width, height = max(width, 1.0), max(height, 1.0)
    ys = _samples(y0, height, output_size[0], sampling_ratio, input)  # [P, g]
    xs = _samples(x0, width, output_size[1], sampling_ratio, input)  # [Q, g]
    if ys.numel() == 0 or xs.numel() == 0:
        return image.sum(dim=(1, 2))[:, None, None].expand(-1, *output_size) * 0
    # The mean over a grid of samples is the mean over its rows of the means over its columns.
    rows = _interpolate(ys, input.shape[2]).to(image)  # [P, H]
    columns = _interpolate(xs, input.shape[3]).to(image)  # [Q, W]
    return torch.einsum("ph,chw,qw->cpq", rows, image, columns)  # [C, P, Q]


def _samples(start: float, length: float, bins: int, sampling_ratio: int, like: Tensor) -> Tensor:
    """Coordinates of the samples of each bin along one axis, [bins, g]."""
    size = length / bins
    count = sampling_ratio if sampling_ratio > 0 else max(math.ceil(size), 0)
    within = (torch.arange(count, device=like.device, dtype=torch.float64) + 0.5) / max(count, 1)
    return start + (torch.arange(bins, device=like.device, dtype=torch.float64)[:, None] + within) * size


def _interpolate(at: Tensor, size: int) -> Tensor:
    """Mean bilinear weights of each pixel over the samples at coordinates `at` [bins, g], as [bins, size]."""
    counts = (at >= -1) & (at <= size)
    at = at.clamp(0, size - 1)
    pixels = torch.arange(size, device=at.device, dtype=at.dtype)
    weights = (1 - (at[..., None] - pixels).abs()).clamp(min=0)  # [bins, g, size]
    return (weights * counts[..., None]).mean(dim=1)  # [bins, size]
