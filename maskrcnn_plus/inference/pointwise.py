"""1 x 1 convolutions on CPUs by oneDNN, with the ReLU and the sum that follow them in the same pass over memory.

PyTorch's own convolution does neither, and with one thread it leaves oneDNN aside for one image.

Shorthand: N images, C channels in, K channels out, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import Conv2d
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_plus.ops.winograd import WinogradConv2d


class PointwiseConv2d(nn.Module):
    """The same convolution, norm and activation as a module that `takes` approves of; without gradients."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """Take the weights of `conv`."""
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.weight, self.bias = conv.weight, conv.bias
        self.stride = list(conv.stride)
        self.norm = getattr(conv, "norm", None)
        activation = getattr(conv, "activation", None)
        self.relu = self.norm is None and (isinstance(activation, nn.ReLU) or activation is F.relu)
        self.activation = None if self.relu else activation

    @staticmethod
    def takes(conv: nn.Module) -> bool:
        """Whether a module can be replaced on this machine."""
        return (
            torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
            and type(conv) in (nn.Conv2d, Conv2d)
            and conv.kernel_size == (1, 1)
            and conv.padding in ((0, 0), "same", "valid")
            and conv.groups == 1
            and conv.weight.dtype == torch.float32
            and conv.weight.device.type == "cpu"
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, K, H, W]."""
        relu = "relu" if self.relu else "none"
        x = torch.ops.mkldnn._convolution_pointwise(x, *self._arguments(), relu, [], "")
        for module in (self.norm, self.activation):
            x = x if module is None else module(x)
        return x

    def add_relu(self, x: Tensor, other: Tensor) -> Tensor:
        """ReLU of the convolution without norm and activation plus `other` [N, K, H, W]."""
        arguments = (*self._arguments(), "add", 1.0, "relu", [], "")
        return torch.ops.mkldnn._convolution_pointwise.binary(x, other, *arguments)

    def _arguments(self) -> tuple[Any, ...]:
        return self.weight, self.bias, [0, 0], self.stride, [1, 1], 1


class FusedBottleneck(nn.Module):
    """A `BottleneckBlock` of Detectron2's ResNets whose ReLUs and sum are part of its convolutions.

    He et al., Deep Residual Learning for Image Recognition (2016), Fig. 5, right.
    """

    def __init__(self, block: BottleneckBlock) -> None:
        """Take the convolutions of `block`."""
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.shortcut = block.conv1, block.conv2, block.conv3, block.shortcut
        for conv in (self.conv1, self.conv2):
            if isinstance(conv, (PointwiseConv2d, WinogradConv2d)):
                conv.relu = True

    @staticmethod
    def takes(block: nn.Module) -> bool:
        """Whether a module is such a block, its 1 x 1 convolutions replaced and its norms folded."""
        return type(block) is BottleneckBlock and all(
            (isinstance(conv, PointwiseConv2d) or conv is block.conv2) and conv.norm is conv.activation is None
            for conv in (block.conv1, block.conv2, block.conv3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, K, H', W']."""
        out = self.conv2(self.conv1(x))
        if not isinstance(self.conv2, WinogradConv2d):
            out = F.relu_(out)
        return self.conv3.add_relu(out, x if self.shortcut is None else self.shortcut(x))
