"""Attention within windows of an image's patches.

Li, Mao, Girshick, He, "Exploring Plain Vision Transformer Backbones for Object Detection" (ViTDet), 2022, section 3.

Shape shorthand: N images, C channels, H x W the grid of patches, P prefix tokens (class token and registers), T patches
in a window, D channels of a rotary embedding.
"""

import torch
from torch import Tensor, nn

__all__ = ["window_attention"]


def window_attention(
    attention: nn.Module,
    tokens: Tensor,
    grid: tuple[int, int],
    window_size: int,
    num_prefix_tokens: int = 0,
    rope: Tensor | None = None,
) -> Tensor:
    """Self-attention within non-overlapping windows of a grid of patches.

    Windows of a size are one batch: those inside, at the right edge, at the bottom edge and in the corner, so that no
    window needs padding or a mask. A window that covers the grid is global attention.

    Args:
        attention: [batch, T, C] -> the same; takes `rope` where that is given.
        tokens: [N, P + H * W, C], rows of patches after the prefix tokens.
        grid: (H, W) in patches.
        window_size: side of the windows in patches.
        num_prefix_tokens: P; every window has them before its patches. Their result is the mean over all windows.
        rope: rotary embedding of each patch, [H * W, D] or [heads, H * W, D]; it stays the patch's own.

    Returns:
        [N, P + H * W, C].
    """
    prefix = tokens[:, :num_prefix_tokens]  # [N, P, C]
    patches = tokens[:, num_prefix_tokens:].unflatten(1, grid)  # [N, H * W, C] -> [N, H, W, C]
    if rope is not None:
        rope = rope.reshape(-1, *grid, rope.shape[-1])  # [1 or heads, H, W, D]
    rows, prefix_sum, num_windows = [], torch.zeros_like(prefix), 0
    for top, bottom in _bands(grid[0], window_size):
        row = []
        for left, right in _bands(grid[1], window_size):
            shape = (min(window_size, bottom - top), min(window_size, right - left))
            windows = _split(patches[:, top:bottom, left:right], shape)  # [N, windows, T, C]
            count = windows.shape[1]
            windows = torch.cat([prefix.unsqueeze(1).expand(-1, count, -1, -1), windows], dim=2).flatten(0, 1)
            if rope is None:
                attended = attention(windows)  # [N * windows, P + T, C]
            else:
                window_rope = _split(rope[:, top:bottom, left:right], shape).transpose(0, 1)  # [windows, heads, T, D]
                attended = attention(windows, rope=window_rope.repeat(len(tokens), 1, 1, 1))
            attended = attended.unflatten(0, (-1, count))  # [N, windows, P + T, C]
            prefix_sum = prefix_sum + attended[:, :, :num_prefix_tokens].sum(dim=1)
            num_windows += count
            row.append(_merge(attended[:, :, num_prefix_tokens:], shape, (bottom - top, right - left)))
        rows.append(torch.cat(row, dim=2))
    patches = torch.cat(rows, dim=1).flatten(1, 2)  # [N, H, W, C] -> [N, H * W, C]
    return torch.cat([prefix_sum / num_windows, patches], dim=1)


def _bands(length: int, window_size: int) -> list[tuple[int, int]]:
    """(start, stop) of the part of a side that full windows cover and of the part that is left, if any."""
    full = length - length % window_size
    return [(start, stop) for start, stop in ((0, full), (full, length)) if stop > start]


def _split(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """[B, rows * h, columns * w, C] -> [B, rows * columns, h * w, C] for windows of shape (h, w)."""
    x = x.unflatten(2, (-1, shape[1])).unflatten(1, (-1, shape[0]))  # [B, rows, h, columns, w, C]
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _merge(windows: Tensor, shape: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The inverse of `_split`: [B, windows, h * w, C] -> [B, *size, C]."""
    x = windows.unflatten(2, shape).unflatten(
        1, (size[0] // shape[0], size[1] // shape[1])
    )  # [B, rows, columns, h, w, C]
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
