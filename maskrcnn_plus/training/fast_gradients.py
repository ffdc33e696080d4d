"""Convolutions that train faster on a CPU than by oneDNN's kernels.

In bfloat16 it computes the gradients of depthwise convolutions with strides or with kernels above 3 x 3 by plain loops,
3 to 25 times slower than its float32 kernels; those of transposed convolutions (the upsampling of a mask head) 4 times
slower than matrix products. Together they are a third of a training step of Mask R-CNN with EfficientNet-Lite0 under
autocast. In float32, 3 x 3 convolutions and their gradients run by Winograd's method.

Shape shorthand: N maps, C input and D output channels, s stride.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from maskrcnn_plus.ops.winograd import WinogradConv2d, convolve

_LEAST_PIXELS = 2048  # of all maps, for which it pays to transform the kernels


class _DepthwiseConvolution(torch.autograd.Function):
    """`conv2d` in bfloat16, its gradients in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d) -> Tensor:
        x = x.bfloat16()
        ctx.save_for_backward(x, weight)
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        ctx.geometry = (conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups)
        with torch.autocast("cpu", enabled=False):  # it would keep the copy of the weight, which has no history here
            bias = None if bias is None else bias.bfloat16()
            return F.conv2d(x, weight.bfloat16(), bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradients = torch.ops.aten.convolution_backward(
            grad.float(), x.float(), weight, ctx.bias_sizes, *ctx.geometry, ctx.needs_input_grad[:3]
        )
        return *gradients, None


class _Upsampling(torch.autograd.Function):
    """`conv_transpose2d` in bfloat16 whose outputs do not overlap, its gradients as matrix products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        x, half = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, half)
        ctx.stride = stride
        with torch.autocast("cpu", enabled=False):
            return F.conv_transpose2d(x, half, None if bias is None else bias.bfloat16(), stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # [N, C, H, W], [C, D, s, s]
        (n, c, h, w), (d, s) = x.shape, (weight.shape[1], ctx.stride)
        # A pixel of x reaches the s x s pixels of one cell: rows are pixels of x, columns (s, s, D).
        cells = grad.permute(0, 2, 3, 1).reshape(n, h, s, w, s, d).transpose(2, 3).reshape(n * h * w, s * s * d)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            kernel = weight.permute(2, 3, 1, 0).reshape(s * s * d, c)
            grad_x = (cells @ kernel).view(n, h, w, c).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            rows = x.permute(0, 2, 3, 1).reshape(n * h * w, c)
            grad_weight = (rows.T @ cells).view(c, s, s, d).permute(0, 3, 1, 2).float()
        if ctx.needs_input_grad[2]:
            grad_bias = cells.sum(0).view(s * s, d).float().sum(0)
        return grad_x, grad_weight, grad_bias, None


class _DepthwiseConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        if not _autocast():
            return super().forward(x)
        return _DepthwiseConvolution.apply(x, self.weight, self.bias, self)


class _DepthwiseConv2dSame(Conv2dSame):
    def forward(self, x: Tensor) -> Tensor:
        if not _autocast():
            return super().forward(x)
        x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return _DepthwiseConvolution.apply(x, self.weight, self.bias, self)


class _UpsamplingConvTranspose2d(nn.ConvTranspose2d):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None or not _autocast():
            return super().forward(x, output_size)
        return _Upsampling.apply(x, self.weight, self.bias, self.stride[0])


class _TorchConv3x3(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.bias) if _trains_in_float32(x) else super().forward(x)


class _DetectronConv3x3(Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        if not _trains_in_float32(x):
            return super().forward(x)
        x = convolve(x, self.weight, self.bias)
        for module in (self.norm, self.activation):
            x = x if module is None else module(x)
        return x


_3X3 = {nn.Conv2d: _TorchConv3x3, Conv2d: _DetectronConv3x3}
_DEPTHWISE = {nn.Conv2d: _DepthwiseConv2d, Conv2dSame: _DepthwiseConv2dSame}


def use_fast_convolutions(model: nn.Module, amp_dtype: torch.dtype | None) -> int:
    """Make a model on a CPU train faster, in place; gives the number of convolutions that changed.

    Args:
        model: keeps its names and weights.
        amp_dtype: of autocast, None in float32.
    """
    return use_winograd(model) if amp_dtype is None else use_fast_gradients(model)


def use_fast_gradients(model: nn.Module) -> int:
    """Give the convolutions of a model faster gradients under bfloat16 autocast on a CPU.

    Those of depthwise convolutions are computed in float32, those of upsampling transposed convolutions (kernel =
    stride) by matrix products. The model computes the same otherwise and keeps its names and weights. Convolutions of
    other classes than `nn.Conv2d`, timm's `Conv2dSame` and `nn.ConvTranspose2d` stay as they are.

    Returns:
        The number of convolutions that changed.
    """
    changed = 0
    for module in model.modules():
        if type(module) in _DEPTHWISE and _is_slow_depthwise(module):
            module.__class__ = _DEPTHWISE[type(module)]
        elif type(module) is nn.ConvTranspose2d and _is_upsampling(module):
            module.__class__ = _UpsamplingConvTranspose2d
        else:
            continue
        changed += 1
    return changed


def use_winograd(model: nn.Module) -> int:
    """Let the 3 x 3 convolutions of a model train by Winograd's method in float32 on a CPU, in place.

    Outputs and gradients differ by some 1e-6 of their magnitude. Maps of few pixels, autocast and what has no gradients
    run as before, and so do all where the processor or the installation lacks the operator.

    Returns:
        The number of convolutions that changed.
    """
    convs = [module for module in model.modules() if type(module) in _3X3 and WinogradConv2d.takes(module)]
    for conv in convs:
        conv.__class__ = _3X3[type(conv)]
    return len(convs)


def _is_slow_depthwise(conv: nn.Conv2d) -> bool:
    depthwise = conv.groups == conv.in_channels == conv.out_channels > 1
    plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and conv.weight.dtype == torch.float32
    return depthwise and plain and (max(conv.kernel_size) > 3 or max(conv.stride) > 1)


def _is_upsampling(conv: nn.ConvTranspose2d) -> bool:
    square = len({*conv.kernel_size, *conv.stride}) == 1
    unpadded = conv.padding == conv.output_padding == (0, 0) and conv.dilation == (1, 1)
    return square and unpadded and conv.groups == 1 and conv.weight.dtype == torch.float32


def _autocast() -> bool:
    enabled = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
    return enabled and torch.is_grad_enabled()


def _trains_in_float32(x: Tensor) -> bool:
    plain = torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu") and not torch.jit.is_tracing()
    return plain and x.dim() == 4 and x.dtype == torch.float32 and x[:, 0].numel() >= _LEAST_PIXELS
