"""RoIAlign of a pyramid where the compiled operator does not run: map by map, by an operator for one map.

The arithmetic is float32 at least, as in the compiled operator: maps in half precision are widened, and the result is
rounded once. Half precision is too coarse for coordinates: a bfloat16 near 1000 px is up to 4 px off.

Shorthand: K boxes, L maps, N images, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from maskrcnn_plus.ops.roi_align_reference import MAX_SAMPLING_RATIO, roi_align_reference

# Torchvision's kernels visit every sample, wherever it lies: a box of so many, in maps, is left to the reference, which
# visits those on the map. So is one with so many in each bin.
_MOST_MAPS = 4
_MOST_SAMPLES = 1024


def align_map_by_map(
    align: Callable[..., Tensor],
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    output_size: tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign of every box on its own map.

    Looking at the values of the boxes takes one synchronisation with a GPU. They are not looked at where there are none
    yet: in a trace, a compilation or `torch.vmap`.

    Args:
        align: torchvision's `roi_align` or `roi_align_reference`.
        features, rois, levels, output_size, scales, sampling_ratio, aligned: see `roi_align_pyramid`.

    Returns:
        [K, C, height, width] in the type of the maps, differentiable with respect to them.

    Raises:
        ValueError: as `roi_align_pyramid`.
    """
    _check_arguments(features, rois, levels, output_size, scales, sampling_ratio)
    kind = features[0].dtype
    for feature in features:
        kind = torch.promote_types(kind, feature.dtype)
    exact = torch.promote_types(kind, torch.float32)
    rois = rois.to(exact)
    with torch.autocast(rois.device.type, enabled=False):
        if _has_values(rois):
            groups = _groups(features, rois, levels, output_size, scales, sampling_ratio)
        elif levels is None:
            groups = [(slice(None), 0, False)]
        else:
            groups = [((levels == level).nonzero()[:, 0], level, False) for level in range(len(features))]
        pooled = []
        for chosen, level, huge in groups:
            each = roi_align_reference if huge else align
            of_level = each(
                features[level].to(exact), rois[chosen], output_size, scales[level], sampling_ratio, aligned
            )
            pooled.append(of_level.to(kind))
        if len(pooled) == 1:
            return pooled[0]
        output = torch.zeros(len(rois), *pooled[0].shape[1:], dtype=kind, device=rois.device)
        for (chosen, _, _), of_level in zip(groups, pooled, strict=True):
            output.index_put_((chosen,), of_level)
        return output


def _has_values(rois: Tensor) -> bool:
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or rois.device.type == "meta":
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(rois)


def _groups(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    output_size: tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int,
) -> list[tuple[Tensor, int, bool]]:
    """Indices of the boxes of each map, in rising order, the map, and whether they are too large for torchvision.

    A map without a box is among them, so that gradients reach it.

    Raises:
        ValueError: a box is not finite or not of an image, or a level not of the pyramid.
    """
    count = len(features)
    level_of = torch.zeros(len(rois), dtype=torch.int64, device=rois.device) if levels is None else levels
    unusable = ~rois.isfinite().all(dim=1) | (rois[:, 0] < 0) | (rois[:, 0] >= features[0].shape[0])
    unusable |= (level_of < 0) | (level_of >= count)
    of_map = level_of.clamp(0, count - 1)
    sides = rois.new_tensor([feature.shape[-2:] for feature in features])[of_map]  # [K, 2] (y, x)
    extents = (rois[:, 3:] - rois[:, 1:3]).flip(1) * rois.new_tensor(list(scales))[of_map, None]  # [K, 2] (y, x)
    bins = rois.new_tensor(output_size)
    samples = extents.clamp(min=0) + bins if sampling_ratio <= 0 else (bins * sampling_ratio).expand_as(extents)
    huge = samples.prod(dim=1) > _MOST_MAPS * sides.prod(dim=1) + _MOST_SAMPLES * bins.prod()
    codes = torch.where(unusable, 2 * count, 2 * level_of + huge)  # [K]
    *numbers, bad = (codes[:, None] == torch.arange(2 * count + 1, device=codes.device)).sum(dim=0).tolist()
    if bad:
        _refuse(int(unusable.nonzero()[0]), rois, level_of, count, features[0].shape[0])
    members = codes.argsort(stable=True).split([*numbers, bad])
    groups = [(chosen, code // 2, bool(code % 2)) for code, chosen in enumerate(members[:-1])]
    return [group for group in groups if len(group[0]) or not group[2]]


def _refuse(k: int, rois: Tensor, levels: Tensor, maps: int, images: int) -> None:
    level, roi = int(levels[k]), rois[k].tolist()
    if not 0 <= level < maps:
        raise ValueError(f"roi_align: level {level} of RoI {k} is outside [0, {maps}).")
    if bool(rois[k].isfinite().all()):
        raise ValueError(f"roi_align: batch index {roi[0]:g} of RoI {k} is outside [0, {images}).")
    raise ValueError(f"roi_align: RoI {k} is not finite: ({', '.join(f'{value:g}' for value in roi)}).")


def _check_arguments(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    output_size: tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int,
) -> None:
    """What the compiled operator refuses, but for the values of the boxes."""
    first = features[0]
    for index, feature in enumerate(features):
        if feature.dim() != 4:
            raise ValueError(f"roi_align: feature map {index} must be [N, C, H, W], got {tuple(feature.shape)}.")
        mixed = feature.dtype != first.dtype and not torch.is_autocast_enabled(first.device.type)
        if feature.shape[1] != first.shape[1] or mixed:
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
