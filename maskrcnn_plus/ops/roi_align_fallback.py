"""RoIAlign of a pyramid where no kernel of this package runs: map by map, by torchvision's kernels or the reference.

The arithmetic is float32 at least, as in the compiled operator: maps in half precision are widened, and the result is
rounded once. Half precision is too coarse for coordinates: a bfloat16 near 1000 px is up to 4 px off.

Shorthand: K boxes, L maps, N images, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torchvision  # noqa: F401 - its operators
from torch import Tensor

from maskrcnn_plus.ops import extension
from maskrcnn_plus.ops.roi_align_reference import (
    MAX_SAMPLING_RATIO,
    roi_align_backward_reference,
    roi_align_reference,
)

# Torchvision's kernels visit every sample, wherever it lies: a box of so many, in maps, is left to the reference, which
# visits those on the map. So is one with so many in each bin.
_MOST_MAPS = 4
_MOST_SAMPLES = 1024


def split_sizes(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """(N, C, H, W) of each map, from all of them one after the other."""
    return [tuple(sizes[i : i + 4]) for i in range(0, len(sizes), 4)]


def in_memory_format(tensor: Tensor, channels_last: bool) -> Tensor:
    """The tensor, a copy where its memory is in another order."""
    return tensor.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def forward_fallback(features, rois, levels, scales, height, width, sampling_ratio, aligned, channels_last):
    """`maskrcnn_plus::roi_align` on devices without a kernel of ours; one synchronisation with a GPU."""
    if rois.device.type == "cpu":
        extension.warn_once("roi_align")
    output_size = (height, width)
    check_arguments(features, rois, levels, output_size, scales, sampling_ratio)
    kind = features[0].dtype
    rois = rois.to(torch.promote_types(kind, torch.float32))
    output = rois.new_zeros(len(rois), features[0].shape[1], *output_size, dtype=kind)
    shapes = [feature.shape for feature in features]
    for chosen, level, exactly in _groups(shapes, rois, levels, output_size, scales, sampling_ratio):
        map_, boxes = features[level].to(rois.dtype), rois[chosen]
        if exactly:
            pooled = roi_align_reference(map_, boxes, output_size, scales[level], sampling_ratio, aligned)
        else:
            pooled = torch.ops.torchvision.roi_align(map_, boxes, scales[level], height, width, sampling_ratio, aligned)
        output[chosen] = pooled.to(kind)
    return in_memory_format(output, channels_last)


def backward_fallback(grad, rois, levels, scales, sizes, sampling_ratio, aligned, channels_last):
    """`maskrcnn_plus::roi_align_backward` on devices without a kernel of ours; one synchronisation with a GPU."""
    kind, output_size, shapes = grad.dtype, tuple(grad.shape[2:]), split_sizes(sizes)
    rois = rois.to(torch.promote_types(kind, torch.float32))
    results = [rois.new_zeros(shape) for shape in shapes]
    for chosen, level, exactly in _groups(shapes, rois, levels, output_size, scales, sampling_ratio):
        of_boxes, boxes, scale = grad[chosen].to(rois.dtype).contiguous(), rois[chosen], scales[level]
        if exactly:
            results[level] += roi_align_backward_reference(
                of_boxes, boxes, shapes[level], scale, sampling_ratio, aligned
            )
        elif len(boxes):
            results[level] += torch.ops.torchvision._roi_align_backward(
                of_boxes, boxes, scale, *output_size, *shapes[level], sampling_ratio, aligned
            )
    return [in_memory_format(result.to(kind), channels_last) for result in results]


def _groups(
    shapes: Sequence[Sequence[int]],
    rois: Tensor,
    levels: Tensor | None,
    output_size: tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int,
) -> Iterator[tuple[Tensor, int, bool]]:
    """Indices of the boxes of each map, in rising order, the map, and whether the reference has to take them.

    It takes boxes too large for torchvision's kernels and, where deterministic algorithms are asked for, all on a GPU.

    Raises:
        ValueError: a box is not finite or not of an image, or a level not of the pyramid.
    """
    count, images = len(shapes), shapes[0][0]
    level_of = torch.zeros(len(rois), dtype=torch.int64, device=rois.device) if levels is None else levels
    unusable = ~rois.isfinite().all(dim=1) | (rois[:, 0] < 0) | (rois[:, 0] >= images)
    unusable |= (level_of < 0) | (level_of >= count)
    of_map = level_of.clamp(0, count - 1)
    sides = rois.new_tensor([list(shape[2:]) for shape in shapes])[of_map]  # [K, 2] (y, x)
    extents = (rois[:, 3:] - rois[:, 1:3]).flip(1) * rois.new_tensor(list(scales))[of_map, None]  # [K, 2] (y, x)
    bins = rois.new_tensor(output_size)
    samples = extents.clamp(min=0) + bins if sampling_ratio <= 0 else (bins * sampling_ratio).expand_as(extents)
    huge = samples.prod(dim=1) > _MOST_MAPS * sides.prod(dim=1) + _MOST_SAMPLES * bins.prod()
    codes = torch.where(unusable, 2 * count, 2 * level_of + huge)  # [K]
    *numbers, bad = (codes[:, None] == torch.arange(2 * count + 1, device=codes.device)).sum(dim=0).tolist()
    if bad:
        _refuse(int(unusable.nonzero()[0]), rois, level_of, count, images)
    exactly = rois.device.type != "cpu" and torch.are_deterministic_algorithms_enabled()
    for code, chosen in enumerate(codes.argsort(stable=True).split([*numbers, bad])[:-1]):
        if len(chosen):
            yield chosen, code // 2, exactly or bool(code % 2)


def _refuse(k: int, rois: Tensor, levels: Tensor, maps: int, images: int) -> None:
    level, roi = int(levels[k]), rois[k].tolist()
    if not 0 <= level < maps:
        raise ValueError(f"roi_align: level {level} of RoI {k} is outside [0, {maps}).")
    if bool(rois[k].isfinite().all()):
        raise ValueError(f"roi_align: batch index {roi[0]:g} of RoI {k} is outside [0, {images}).")
    raise ValueError(f"roi_align: RoI {k} is not finite: ({', '.join(f'{value:g}' for value in roi)}).")


def check_arguments(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    output_size: tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int,
) -> None:
    """Raise a ValueError where the compiled operator does, but for the values of the boxes."""
    first = features[0]
    for index, feature in enumerate(features):
        if feature.dim() != 4:
            raise ValueError(f"roi_align: feature map {index} must be [N, C, H, W], got {tuple(feature.shape)}.")
        if feature.shape[1] != first.shape[1] or feature.dtype != first.dtype:
            raise ValueError(f"roi_align: feature map {index} differs from the first in channels, type or device.")
    if len(scales) != len(features):
        raise ValueError(f"roi_align: {len(features)} feature maps but {len(scales)} spatial scales.")
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(f"roi_align: rois must be [K, 5] (batch index, x0, y0, x1, y1), got {tuple(rois.shape)}.")
    if min(output_size) <= 0:
        raise ValueError(f"roi_align: output size {output_size[0]} x {output_size[1]} must be positive.")
    if sampling_ratio > MAX_SAMPLING_RATIO:
        raise ValueError(
            f"roi_align: sampling_ratio {sampling_ratio} must be at most {MAX_SAMPLING_RATIO} samples a bin and axis."
        )
    for scale in scales:
        if not 0 < scale < float("inf"):
            raise ValueError(f"roi_align: spatial scale {scale} must be positive.")
    if levels is None and len(features) > 1:
        raise ValueError("roi_align: levels are needed where there are several feature maps.")
    if levels is not None and (levels.shape != rois.shape[:1] or levels.dtype != torch.int64):
        raise ValueError("roi_align: levels must be int64 of one entry a RoI.")
