"""Work on the whole-image bitmaps of RoIs, a few at a time: on GPUs, where that is fast and waiting for numbers is not.

The code for CPUs reads a RoI's window alone, whose size it must know first; on a GPU each such look stops the pipeline.

Shorthand: R RoIs, k of a chunk, M mask side, [H, W] image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torchvision.ops import roi_align

GetBitmaps = Callable[[slice], Tensor]  # RoIs [begin, end) -> bool [k, H, W]

_CHUNK_NUMEL = 1 << 24  # pixels of a chunk
MAX_BOX_SIDE = 1 << 20  # pixels; RoIAlign takes a sample a pixel


def prefers_chunks(device: torch.device) -> bool:
    """Whether a device is one that should not be waited for."""
    return device.type != "cpu"


def crop_bitmaps(get_bitmaps: GetBitmaps, image_size: tuple[int, int], boxes: Tensor, mask_size: int) -> Tensor:
    """`BitMasks.crop_and_resize` in chunks, without a synchronisation.

    Args:
        get_bitmaps: gives the bitmaps of a range of RoIs.
        image_size: (H, W).
        boxes: float32 [R, 4] xyxy in pixels. One that is not finite, or too large, stops the device's program.
        mask_size: side M of the result.

    Returns:
        bool [R, M, M].
    """
    usable = ((boxes[:, 2:] - boxes[:, :2]).abs() <= MAX_BOX_SIDE).all() & boxes.isfinite().all()
    torch._assert_async(usable, f"Boxes must be finite and at most {MAX_BOX_SIDE} pixels a side: clip them.")
    crops = [boxes.new_zeros(0, mask_size, mask_size, dtype=torch.bool)]
    with torch.autocast(boxes.device.type, enabled=False):
        for chosen in _chunks(len(boxes), image_size):
            bitmaps = get_bitmaps(chosen)[:, None].to(boxes.dtype)  # [k, 1, H, W]
            index = torch.arange(len(bitmaps), dtype=boxes.dtype, device=boxes.device)
            rois = torch.cat([index[:, None], boxes[chosen]], dim=1)  # [k, 5]
            crops.append(roi_align(bitmaps, rois, mask_size, 1.0, 0, True)[:, 0] >= 0.5)
    return torch.cat(crops)


def count_pixels(get_bitmaps: GetBitmaps, image_size: tuple[int, int], limits: Tensor) -> Tensor:
    """Pixels of each mask and those of them in its window, without a synchronisation.

    Args:
        get_bitmaps: gives the bitmaps of a range of RoIs.
        image_size: (H, W).
        limits: int64 [R, 4], first column and row of the windows, and one beyond the last.

    Returns:
        int64 [2, R].
    """
    counts = [limits.new_zeros(2, 0)]
    rows, columns = (torch.arange(side, device=limits.device) for side in image_size)
    for chosen in _chunks(len(limits), image_size):
        x0, y0, x1, y1 = limits[chosen, :, None].unbind(1)  # [k, 1]
        inside_y, inside_x = (rows >= y0) & (rows < y1), (columns >= x0) & (columns < x1)  # [k, H], [k, W]
        bitmaps = get_bitmaps(chosen)
        inside = bitmaps & inside_y[:, :, None] & inside_x[:, None, :]
        counts.append(torch.stack([bitmaps.sum(dim=(1, 2)), inside.sum(dim=(1, 2))]))
    return torch.cat(counts, dim=1)


def _chunks(count: int, image_size: tuple[int, int]) -> Iterator[slice]:
    height, width = image_size
    size = max(_CHUNK_NUMEL // max(height * width, 1), 1)
    return (slice(begin, begin + size) for begin in range(0, count, size))
