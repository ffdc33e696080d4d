"""3 x 3 convolutions of stride 1 on CPUs, by Winograd's minimal filtering.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2016), Sec. 4: F(4 x 4, 3 x 3), a quarter of the
multiplications. Float32 throughout; results and gradients differ from PyTorch's by some 1e-6 of their magnitude.

Shorthand: N images, C channels in, K channels out, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from maskrcnn_plus.ops import extension
from maskrcnn_plus.ops.replaced_conv import ReplacedConv2d

_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)  # and infinity: those of csrc/cpu/winograd_tiles.h
_PANEL = 32  # output channels
_GRAIN = 16  # channels are multiples of it


class WinogradConv2d(ReplacedConv2d):
    """The same convolution, norm and activation as a module that `takes` approves of; without gradients."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """Copy the weights of `conv` in transformed form, four times their size."""
        super().__init__(conv)
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
        self.register_buffer("weight", transform_kernels(conv.weight.detach().double()).to(conv.weight.dtype))
        self.register_buffer("bias", bias)

    @staticmethod
    def takes(conv: nn.Module) -> bool:
        """Whether a module can be replaced on this machine."""
        return (
            is_fast()
            and ReplacedConv2d.takes(conv)
            and conv.kernel_size == (3, 3)
            and conv.stride == conv.dilation == (1, 1)
            and conv.padding in ((1, 1), "same")
            and conv.padding_mode == "zeros"
            and conv.in_channels % _GRAIN == conv.out_channels % _GRAIN == 0
        )

    def convolve(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, K, H, W], before norm and activation, but for a ReLU."""
        return torch.ops.maskrcnn_plus.winograd_conv3x3(x, self.weight, self.bias, self.relu)


class _Convolution(torch.autograd.Function):
    """A convolution with padding 1 whose gradients are by Winograd's method too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        offsets = weight.new_zeros(len(weight)) if bias is None else bias
        return torch.ops.maskrcnn_plus.winograd_conv3x3(x, transform_kernels(weight), offsets, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:  # a convolution with the kernels turned by half a turn
            kernels = transform_kernels(weight.flip(2, 3).transpose(0, 1))
            grad_x = torch.ops.maskrcnn_plus.winograd_conv3x3(grad, kernels, grad.new_zeros(x.shape[1]), False)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.ops.maskrcnn_plus.winograd_conv3x3_backward_weight(x, grad)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A differentiable convolution of stride 1 with padding 1.

    Args:
        x: float32 [N, C, H, W].
        weight: float32 [K, C, 3, 3]; C and K are multiples of 16.
        bias: float32 [K] or None.

    Returns:
        [N, K, H, W] in channels_last memory.
    """
    return _Convolution.apply(x, weight, bias)


def is_fast() -> bool:
    """Whether the operator is there, with the vector instructions that make it faster than PyTorch's convolution."""
    return extension.is_available() and torch.ops.maskrcnn_plus.cpu_capability() != "DEFAULT"


def transform_kernels(weight: Tensor) -> Tensor:
    """The weight that `torch.ops.maskrcnn_plus.winograd_conv3x3` takes: G g G^T of each kernel g.

    Args:
        weight: [K, C, 3, 3].

    Returns:
        [36, ceil(K / 32), C, 32] of the same type, channels beyond K zero.
    """
    g = _kernel_transform()
    padded = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, -weight.shape[0] % _PANEL))
    # Small copies first: the product has the layout that is wanted.
    kernels = padded.unflatten(0, (-1, _PANEL)).permute(3, 4, 0, 2, 1)  # [3, 3, panels, C, 32]
    product = torch.kron(g, g).to(weight.dtype) @ kernels.reshape(9, -1)  # [36, panels * C * 32]
    return product.view(-1, *kernels.shape[2:])


def _kernel_transform() -> Tensor:
    """G of Lavin and Gray, Eq. 5, for our points: float64 [6, 3]."""
    powers = torch.tensor([[point**power for power in range(3)] for point in _POINTS] + [[0, 0, 1]])
    factors = [torch.tensor([p - q for q in _POINTS if q != p], dtype=torch.float64).prod() for p in _POINTS]
    return powers.double() / torch.tensor([*factors, 1.0], dtype=torch.float64)[:, None]


def winograd_reference(input: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """`maskrcnn_plus::winograd_conv3x3` in plain PyTorch: the kernels transformed back, and a direct convolution."""
    g = _kernel_transform()  # [6, 3]
    inverse = torch.linalg.pinv(g).to(weight)  # [3, 6]
    transformed = weight.transpose(1, 2).flatten(2)[:, :, : len(bias)].unflatten(0, (6, 6))  # [6, 6, C, K]
    kernels = torch.einsum("ai,ijck,bj->kcab", inverse, transformed, inverse)  # [K, C, 3, 3]
    output = F.conv2d(input, kernels, bias, padding=1).contiguous(memory_format=torch.channels_last)
    return output.relu_() if relu else output


@torch.library.register_fake("maskrcnn_plus::winograd_conv3x3")
def _(input: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    shape = (input.shape[0], bias.shape[0], *input.shape[2:])
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)


def backward_weight_reference(input: Tensor, grad: Tensor) -> Tensor:
    """`maskrcnn_plus::winograd_conv3x3_backward_weight` by PyTorch's own gradient."""
    weight = grad.new_empty(grad.shape[1], input.shape[1], 3, 3)
    pairs = ([1, 1],) * 3
    return torch.ops.aten.convolution_backward(
        grad, input, weight, None, *pairs, False, [0, 0], 1, [False, True, False]
    )[1].contiguous()


@torch.library.register_fake("maskrcnn_plus::winograd_conv3x3_backward_weight")
def _(input: Tensor, grad: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[1], input.shape[1], 3, 3)


extension.LIBRARY.impl("winograd_conv3x3", winograd_reference, "CompositeExplicitAutograd")
extension.LIBRARY.impl("winograd_conv3x3_backward_weight", backward_weight_reference, "CompositeExplicitAutograd")
