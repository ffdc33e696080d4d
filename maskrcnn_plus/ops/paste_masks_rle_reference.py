"""Masks pasted into the image in plain PyTorch, one object's window at a time: the truth of the compiled operator.

Two rules. "detectron2" samples the mask at the centres of the pixels of its box, in the arithmetic of Detectron2's
`paste_masks_in_image` on CPUs. "torchvision" resizes the mask to the whole pixels of its box, as torchvision's
`paste_masks_in_image` does.

Shorthand: N objects, Hm x Wm mask of an object in its box, h x w window of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

from maskrcnn_plus.rle import encode_windows

Window = tuple[Tensor, int, int]  # bool [h, w], x and y of the first

_BAND_NUMEL = 1 << 20  # pixels whose values are held at once


def paste_masks_rle_reference(
    mask_probs: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5, rule: str = "detectron2"
) -> list[dict[str, Any]]:
    """Paste and encode masks; see `maskrcnn_plus.ops.paste_masks_rle.paste_masks_rle`, which checks the arguments.

    Args:
        mask_probs: float32 [N, Hm, Wm] on the CPU.
        boxes: float32 [N, 4] xyxy in pixels, finite.
        height, width: of the image in pixels.
        threshold: a pixel belongs to the object from this probability on.
        rule: "detectron2" or "torchvision".

    Returns:
        N RLEs of size [height, width].
    """
    if rule == "torchvision":
        mask_probs, scale = expand_masks(mask_probs[:, None], padding=1)  # [N, 1, Hm + 2, Wm + 2]
        mask_probs = mask_probs[:, 0]
        boxes = expand_boxes(boxes, scale).to(torch.int64)
    window: Callable[..., Window | None] = _sampled_window if rule == "detectron2" else _resized_window
    pasted = (window(*each, height, width, threshold) for each in zip(mask_probs, boxes, strict=True))
    windows = [None if each is None else (each[0].numpy(), *each[1:]) for each in pasted]
    return encode_windows(windows, height, width)


def paste_masks_dense(
    mask_probs: Tensor, boxes: Tensor, height: int | Tensor, width: int | Tensor, threshold: float = 0.5
) -> Tensor:
    """Masks of the rule "detectron2" as pixels, all at once: for a trace, which then holds for images of other sizes.

    Args:
        mask_probs: [N, Hm, Wm].
        boxes: float32 [N, 4] xyxy in pixels.
        height, width: of the image in pixels.
        threshold: a pixel belongs to the object from this probability on.

    Returns:
        bool [N, height, width].
    """
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)  # [N, 1]
    x = _relative(torch.arange(width, device=boxes.device), x0, x1)  # [N, W]
    y = _relative(torch.arange(height, device=boxes.device), y0, y1)  # [N, H]
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=3)  # [N, H, W, 2]
    return F.grid_sample(mask_probs[:, None].to(boxes.dtype), grid, align_corners=False)[:, 0] >= threshold


def _relative(pixels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Centres of pixels along one axis as `grid_sample` takes them: -1 and 1 at the edges of the box."""
    return (pixels.to(low.dtype) + 0.5 - low) / (high - low) * 2 - 1


def _sampled_window(probs: Tensor, box: Tensor, height: int, width: int, threshold: float) -> Window | None:
    """The mask [Hm, Wm] sampled at pixel centres in the window that Detectron2 takes; None where that is empty."""
    x0, y0, x1, y1 = box
    left, top = (max(int(low.floor().item() - 1), 0) for low in (x0, y0))
    right, bottom = min(int(x1.ceil().item() + 1), width), min(int(y1.ceil().item() + 1), height)
    if left >= right or top >= bottom:
        return None
    x = _relative(torch.arange(left, right), x0, x1)  # [w]
    rows = []
    for band in torch.arange(top, bottom).split(max(_BAND_NUMEL // len(x), 1)):
        grid = torch.stack(torch.meshgrid(x, _relative(band, y0, y1), indexing="xy"), dim=2)  # [b, w, 2]
        values = F.grid_sample(probs[None, None], grid[None], align_corners=False)[0, 0]  # [b, w]
        rows.append(values >= threshold)
    return torch.cat(rows), left, top


def _resized_window(probs: Tensor, box: Tensor, height: int, width: int, threshold: float) -> Window | None:
    """The mask resized to the pixels of its whole-numbered box, its last row and column included, cut to the image."""
    x0, y0, x1, y1 = box.tolist()
    left, right, top, bottom = max(x0, 0), min(x1 + 1, width), max(y0, 0), min(y1 + 1, height)
    if left >= right or top >= bottom:
        return None
    size = (max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1))
    values = F.interpolate(probs[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    return values[top - y0 : bottom - y0, left - x0 : right - x0] >= threshold, left, top
