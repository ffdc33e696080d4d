"""Parts of a timm network that training leaves alone: parameters, and batch norms fixed to their statistics.

Shape shorthand: N images, C channels, H x W pixels.
"""

import torch
from detectron2.layers import FrozenBatchNorm2d
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn

__all__ = ["FrozenBatchNormAct2d", "freeze_batch_norms", "freeze_up_to"]


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """Detectron2's frozen batch norm followed by the dropout and activation that timm fuses into its batch norm."""

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__(num_features, eps)
        self.drop = nn.Identity()
        self.act = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        return self.act(self.drop(super().forward(x)))


def freeze_up_to(net: nn.Module, position: int, side: int, in_chans: int) -> None:
    """Freezes every parameter that a feature map depends on, and the batch norms among them, in place.

    Args:
        net: a timm feature extractor; left in training mode.
        position: of the feature map in its outputs.
        side: of a square image that it accepts, in pixels.
        in_chans: channels of its input.

    Raises:
        ValueError: one of the norms cannot be frozen.
    """
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    net.eval()  # a training pass would update the running statistics
    with torch.enable_grad():
        output = net(torch.zeros(1, in_chans, side, side))[position]
        # A parameter outside the graph of the output has no gradient at all; one inside may have a zero gradient.
        gradients = torch.autograd.grad(output.sum(), trained, allow_unused=True)
    net.train()
    frozen = [parameter for parameter, gradient in zip(trained, gradients, strict=True) if gradient is not None]
    for parameter in frozen:
        parameter.requires_grad_(False)
    freeze_batch_norms(net, only={id(parameter) for parameter in frozen})


def freeze_batch_norms(module: nn.Module, only: set[int] | None = None) -> None:
    """Replaces batch norms by frozen ones with the same weights and statistics, in place.

    Args:
        module: all batch norms below it are meant.
        only: ids of parameters; where given, only the norms that own one of them.

    Raises:
        ValueError: one of them keeps running statistics but is not a 2D batch norm.
    """
    for name, child in module.named_children():
        has_statistics = any(key == "running_var" for key, _ in child.named_buffers(recurse=False))
        chosen = only is None or any(id(parameter) in only for parameter in child.parameters(recurse=False))
        if has_statistics and chosen and not isinstance(child, FrozenBatchNorm2d):
            module.add_module(name, _frozen_batch_norm(name, child))
        else:
            freeze_batch_norms(child, only)


def _frozen_batch_norm(name: str, norm: nn.Module) -> FrozenBatchNorm2d:
    """The same affine map as `norm` in evaluation mode, with fixed statistics."""
    if type(norm) in (BatchNormAct2d, SyncBatchNormAct):
        frozen = FrozenBatchNormAct2d.convert_frozen_batchnorm(norm)
        frozen.drop, frozen.act = norm.drop, norm.act
    elif type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm):
        frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
    else:
        raise ValueError(
            f"layer {name!r} of type {type(norm).__name__} keeps running statistics but is not a 2D batch norm and "
            'cannot be frozen: use norm="BN" and freeze_at=0'
        )
    return frozen.train(norm.training)
