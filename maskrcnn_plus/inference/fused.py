"""Convolutions that end with a sum and a ReLU, for prediction on CPUs.

PyTorch's modules read and write the whole feature map again for each of the two; oneDNN's convolutions do them before
they write. The operators are those of PyTorch's compiler, and the plain ones are used where they are missing.

Shorthand: N images, C channels in, K channels out, H x W pixels in, h x w out.
"""

from __future__ import annotations

import torch
from detectron2.layers import Conv2d
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn
from torch.nn import functional as F


class FusedConv2d(nn.Module):
    """The same convolution as a module that `takes` approves of, with its ReLU and a sum; without gradients."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """Share the weights of `conv`, and keep a copy of them in oneDNN's layout."""
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        activation = getattr(conv, "activation", None)
        self.relu = isinstance(activation, nn.ReLU) or activation in (F.relu, F.relu_)
        self.activation = None if self.relu else activation
        self._packed = torch.ops.mkldnn._reorder_convolution_weight(conv.weight.detach(), *self.geometry)

    @staticmethod
    def takes(conv: nn.Module) -> bool:
        """Whether a module can be replaced on this machine."""
        return (
            hasattr(torch.ops.mkldnn, "_convolution_pointwise")
            and torch.backends.mkldnn.is_available()
            and type(conv) in (nn.Conv2d, Conv2d)
            and getattr(conv, "norm", None) is None
            and isinstance(conv.padding, tuple)
            and conv.padding_mode == "zeros"
            and conv.weight.dtype == torch.float32
            and conv.weight.device.type == "cpu"
        )

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[N, C, H, W] -> [N, K, h, w], with `residual` [N, K, h, w] added before the ReLU."""
        if x.numel() == 0 or torch.compiler.is_compiling():
            padding, stride, dilation, groups = self.geometry
            x = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
            x = x if residual is None else x + residual
            x = F.relu(x) if self.relu else x
        elif residual is None:
            x = torch.ops.mkldnn._convolution_pointwise(
                x, self._packed, self.bias, *self.geometry, "relu" if self.relu else "none", [], ""
            )
        else:
            x = torch.ops.mkldnn._convolution_pointwise.binary(
                x, residual, self._packed, self.bias, *self.geometry, "add", 1.0, "relu" if self.relu else None, [], ""
            )
        return x if self.activation is None else self.activation(x)


class FusedBottleneck(nn.Module):
    """Detectron2's `BottleneckBlock`, whose convolutions do its ReLUs and its sum."""

    def __init__(self, block: BottleneckBlock) -> None:
        """Take the convolutions of a block that `takes` approves of; its first two get the ReLUs that follow them."""
        super().__init__()
        self.conv1, self.conv2, self.shortcut = block.conv1, block.conv2, block.shortcut
        block.conv1.activation = block.conv2.activation = block.conv3.activation = nn.ReLU()
        self.conv3 = FusedConv2d(block.conv3)

    @staticmethod
    def takes(block: nn.Module) -> bool:
        """Whether a module can be replaced: its norms are part of its convolutions."""
        return type(block) is BottleneckBlock and all(
            FusedConv2d.takes(conv) and conv.activation is None for conv in (block.conv1, block.conv2, block.conv3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, K, h, w]."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.conv3(self.conv2(self.conv1(x)), shortcut)
