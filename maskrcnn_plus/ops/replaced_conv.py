"""Convolutions of a trained model that are computed in another way.

Shorthand: N images, C channels in, K channels out, H x W pixels.
"""

from __future__ import annotations

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F


class ReplacedConv2d(nn.Module):
    """Base of what takes the place of a convolution, with its norm and activation; without gradients.

    A subclass has `convolve(x)`: the convolution with its bias, and with a ReLU after it where `relu` is set.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        """Take over what is not the convolution itself."""
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.norm = getattr(conv, "norm", None)
        activation = getattr(conv, "activation", None)
        self.relu = self.norm is None and (isinstance(activation, nn.ReLU) or activation is F.relu)
        self.activation = None if self.relu else activation

    @staticmethod
    def takes(conv: nn.Module) -> bool:
        """Whether a module is a float32 convolution without groups on the CPU, and nothing more than that."""
        return type(conv) in (nn.Conv2d, Conv2d) and conv.groups == 1 and is_float32_on_cpu(conv)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, K, H', W']."""
        x = self.convolve(x)
        for module in (self.norm, self.activation):
            x = x if module is None else module(x)
        return x


def is_float32_on_cpu(module: nn.Module) -> bool:
    """Whether the weight of a module is."""
    return module.weight.dtype == torch.float32 and module.weight.device.type == "cpu"
