"""Adaptive convolution: a 3 x 3 convolution whose kernel reads the feature map at the grid of a given anchor.

Source: Vu et al., "Cascade RPN" (2019), Sec. 3.2, Eq. 4-6. The nine points are the anchor's centre, corners and middles
of its sides, in place of the places around p, so that with the regular grid R = {-1, 0, 1}^2

    y(p) = sum over r in R of w(r) * x(p + r + o(r)),    p + r + o(r) = centre(anchor) + r * size(anchor) / 2.

Shape shorthand: N images, C channels in, K channels out, map of H x W places; P = H * W anchors, one a place, row by
row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# An offset of this length leaves every map, and is exact enough in half precision.
_OUTSIDE = 1e4


class AdaptiveConv2d(nn.Module):
    """3 x 3 convolution at the grid of one anchor a place; no gradient flows to the anchors."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False) -> None:
        """Build the layer.

        Args:
            in_channels, out_channels: C and K.
            bias: add a learned number to each output channel.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, features: Tensor, anchors: Tensor) -> Tensor:
        """Convolve.

        Args:
            features: [N, C, H, W]; points outside of the map read zeros.
            anchors: [N, P, 4] xyxy in places of the map: the centre of the place in row i and column j is (j, i). One
                that is not finite reads zeros.

        Returns:
            [N, K, H, W] in the precision of the weights.
        """
        weight = self.weight  # under autocast the features come in another type
        exact = torch.promote_types(weight.dtype, torch.float32)  # half precision is too coarse for coordinates
        grid = sampling_grid(anchors.detach().to(exact), *features.shape[-2:])
        sampled = F.grid_sample(features.to(exact), grid, align_corners=False).to(weight.dtype)
        return F.conv2d(sampled, weight, self.bias, stride=3)  # [N, C, 3 H, 3 W] -> [N, K, H, W]

    def extra_repr(self) -> str:
        """Channels, for `repr`."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, bias={self.bias is not None}"


def sampling_grid(anchors: Tensor, height: int, width: int) -> Tensor:
    """The nine points of each anchor.

    Args:
        anchors: [N, P, 4] xyxy in places of the map.
        height, width: of the map; P is their product.

    Returns:
        [N, 3 H, 3 W, 2]: (x, y) as `grid_sample` takes them, those of a place together. Finite.
    """
    steps = torch.arange(-1, 2, dtype=anchors.dtype, device=anchors.device)
    x1, y1, x2, y2 = anchors.unflatten(1, (height, width))[..., None].unbind(-2)  # each [N, H, W, 1]
    y = ((y1 + y2 + steps * (y2 - y1) + 1) / height - 1)[..., :, None]  # [N, H, W, 3, 1]
    x = ((x1 + x2 + steps * (x2 - x1) + 1) / width - 1)[..., None, :]  # [N, H, W, 1, 3]
    grid = torch.stack(torch.broadcast_tensors(x, y), dim=-1)  # [N, H, W, 3, 3, 2]
    grid = grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # [N, H, 3, W, 3, 2] -> [N, 3 H, 3 W, 2]
    return grid.nan_to_num(nan=_OUTSIDE).clamp(-_OUTSIDE, _OUTSIDE)
