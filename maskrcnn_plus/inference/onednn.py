"""Convolutions on CPUs by oneDNN, with the activation and the sum that follow them in the same pass over memory.

PyTorch's own convolution does neither, and with one thread it leaves oneDNN aside for one image.

Shorthand: N images, C channels in, K channels out, H x W pixels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from detectron2.modeling.backbone.resnet import BottleneckBlock
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_plus.ops.replaced_conv import ReplacedConv2d, is_float32_on_cpu


class PointwiseConv2d(ReplacedConv2d):
    """The same convolution, norm and activation as a module that `takes` approves of; without gradients."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """Take the weights of `conv`."""
        super().__init__(conv)
        self.weight, self.bias = conv.weight, conv.bias
        self.stride = list(conv.stride)

    @staticmethod
    def takes(conv: nn.Module) -> bool:
        """Whether a module can be replaced on this machine."""
        return (
            _has_onednn()
            and ReplacedConv2d.takes(conv)
            and conv.kernel_size == (1, 1)
            and conv.padding in ((0, 0), "same", "valid")
        )

    def convolve(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, K, H', W'], before norm and activation, but for a ReLU."""
        relu = "relu" if self.relu else "none"
        return torch.ops.mkldnn._convolution_pointwise(x, *self._arguments(), relu, [], "")

    def add_relu(self, x: Tensor, other: Tensor) -> Tensor:
        """ReLU of the convolution without norm and activation plus `other` [N, K, H', W']."""
        arguments = (*self._arguments(), "add", 1.0, "relu", [], "")
        return torch.ops.mkldnn._convolution_pointwise.binary(x, other, *arguments)

    def _arguments(self) -> tuple[Any, ...]:
        return self.weight, self.bias, [0, 0], self.stride, [1, 1], 1


class ActivatedConv2d(nn.Module):
    """A convolution and the ReLU or ReLU6 that alone reads its output; without gradients.

    Of TensorFlow's padding ("same": where sides and stride are even, one pixel less before than after) nothing is
    copied: the kernel gets a row and a column of zeros before it, which equal padding on both sides makes good.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module) -> None:
        """Take the weights of a pair that `takes` approves of."""
        super().__init__()
        weight, padding = conv.weight.detach(), list(conv.padding)
        self.with_odd_sides = None
        if type(conv) is Conv2dSame:
            weight, padding = F.pad(weight, (1, 0, 1, 0)), [side // 2 for side in conv.kernel_size]
            self.with_odd_sides = nn.Sequential(conv, activation)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())
        kind = ("relu", []) if _find_limit(activation) == math.inf else ("hardtanh", [0.0, 6.0])
        self._options = (padding, list(conv.stride), list(conv.dilation), conv.groups, *kind, "")

    @staticmethod
    def takes(conv: nn.Module, activation: nn.Module) -> bool:
        """Whether the two can be replaced on this machine."""
        return (
            _has_onednn()
            and type(conv) in (nn.Conv2d, Conv2dSame)
            and is_float32_on_cpu(conv)
            and not isinstance(conv.padding, str)
            and conv.padding_mode == "zeros"
            and (type(conv) is nn.Conv2d or _halves_even_sides(conv))
            and _find_limit(activation) is not None
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, K, H', W']."""
        if self.with_odd_sides is not None and (x.shape[2] % 2 or x.shape[3] % 2):
            return self.with_odd_sides(x)
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self._options)


class FusedBottleneck(nn.Module):
    """A `BottleneckBlock` of Detectron2's ResNets whose ReLUs and sum are part of its convolutions.

    He et al., Deep Residual Learning for Image Recognition (2016), Fig. 5, right.
    """

    def __init__(self, block: BottleneckBlock) -> None:
        """Take the convolutions of `block`."""
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.shortcut = block.conv1, block.conv2, block.conv3, block.shortcut
        for conv in (self.conv1, self.conv2):
            if isinstance(conv, ReplacedConv2d):
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
        if not isinstance(self.conv2, ReplacedConv2d):
            out = F.relu_(out)
        return self.conv3.add_relu(out, x if self.shortcut is None else self.shortcut(x))


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def _halves_even_sides(conv: Conv2dSame) -> bool:
    """Whether of even sides TensorFlow's padding puts one pixel less before than after."""
    is_odd = all(side % 2 == 1 and side > 1 for side in conv.kernel_size)  # a side of 1 is not padded
    return is_odd and (conv.stride, conv.dilation) == ((2, 2), (1, 1))


def _find_limit(activation: nn.Module) -> float | None:
    """The largest value of a ReLU or ReLU6, alone or after modules that do nothing; None of anything else."""
    parts = list(activation) if type(activation) is nn.Sequential else [activation]
    parts = [part for part in parts if type(part) is not nn.Identity]
    return {nn.ReLU: math.inf, nn.ReLU6: 6.0}.get(type(parts[0])) if len(parts) == 1 else None
