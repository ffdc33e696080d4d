"""RoIAlign on GPUs: separable, deterministic, all maps of a pyramid in one launch, no synchronisation.

The kernels take no memory beyond the result. On a CPU they run in Triton's interpreter (`TRITON_INTERPRET=1`).

Shorthand: K boxes, L maps [N, C, H, W], PH x PW bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from maskrcnn_plus.ops import roi_align_triton_kernels as kernels

_FIELDS = 6  # of a map: address, images, height, width, scale, number of its first tile
_TILE = (4, 16)  # pixels (y, x) of a map that one program of the backward has

_captured: list[Tensor] = []  # descriptions that a CUDA graph reads again in each replay


def _describe(maps: Sequence[Tensor], scales: Sequence[float]) -> tuple[Tensor, int]:
    """int64 [L, fields] of channels-last maps, copied to their device without waiting for it, and all their tiles."""
    tiles, fields = 0, []
    bits = torch.tensor(scales, dtype=torch.float64).view(torch.int64).tolist()
    for each, scale in zip(maps, bits, strict=True):
        images, _, height, width = each.shape
        fields.append([each.data_ptr(), images, height, width, scale, tiles])
        tiles += images * triton.cdiv(height, _TILE[0]) * triton.cdiv(width, _TILE[1])
    described = torch.tensor(fields, dtype=torch.int64)
    device = maps[0].device
    if device.type == "cpu":
        return described, tiles
    described = described.pin_memory()
    if torch.cuda.is_current_stream_capturing():
        _captured.append(described)
    return described.to(device, non_blocking=True), tiles


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _options(
    output_size: tuple[int, int], sampling_ratio: int, aligned: bool, levels: Tensor | None
) -> dict[str, int | bool | str]:
    return {
        "PH": output_size[0],
        "PW": output_size[1],
        "RATIO": sampling_ratio,
        "ALIGNED": aligned,
        "HAS_LEVELS": levels is not None,
        "FIELDS": _FIELDS,
        "PRECISION": "ieee" if torch.version.hip else "tf32x3",
        "BW": max(16, triton.next_power_of_2(output_size[1])),
    }


def roi_align_triton(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    scales: Sequence[float],
    output_size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign of every box on its own map; see `roi_align_pyramid` for the arguments.

    Returns:
        [K, C, PH, PW] in channels-last memory. The row of a box that is not finite, or of no image or map, is NaN: to
        raise an error would take a synchronisation.
    """
    features = [feature.contiguous(memory_format=torch.channels_last) for feature in features]
    channels = features[0].shape[1]
    output = _empty((len(rois), channels, *output_size), features[0])
    if output.numel():
        described, _ = _describe(features, scales)
        block = max(16, min(256, triton.next_power_of_2(channels)))
        with torch.cuda.device_of(rois):
            kernels.forward[(len(rois) * output_size[0], triton.cdiv(channels, block))](
                described, rois.float().contiguous(), levels, output, len(features), channels,
                **_options(output_size, sampling_ratio, aligned, levels), BX=16, BC=block, num_warps=8,
            )  # fmt: skip
    return output


def roi_align_backward_triton(
    grad: Tensor,
    rois: Tensor,
    levels: Tensor | None,
    scales: Sequence[float],
    shapes: Sequence[Sequence[int]],
    sampling_ratio: int,
    aligned: bool,
) -> list[Tensor]:
    """Gradients of the maps, bit-identical from run to run.

    Args:
        grad: [K, C, PH, PW], of the output.
        shapes: (N, C, H, W) of each map.
        rois, levels, scales, sampling_ratio, aligned: as in the forward.

    Returns:
        One a map, in channels-last memory.
    """
    grad = grad.contiguous(memory_format=torch.channels_last)
    channels = grad.shape[1]
    results = [_empty(shape, grad) for shape in shapes]
    described, tiles = _describe(results, scales)
    if tiles and channels:
        block = max(16, min(128, triton.next_power_of_2(channels)))
        with torch.cuda.device_of(rois):
            kernels.backward[(tiles, triton.cdiv(channels, block))](
                described, rois.float().contiguous(), levels, grad, len(results), len(rois), channels,
                **_options(tuple(grad.shape[2:]), sampling_ratio, aligned, levels),
                TY=_TILE[0], TX=_TILE[1], BC=block, BK=128, num_warps=2,
            )  # fmt: skip
    return results
