"""FPN with a bottom-up path on top (Liu et al., "Path Aggregation Network for Instance Segmentation", 2018, 3.1).

With P_i the outputs of FPN, the finest level stays as it is and each coarser one takes in the one below:

    N_2 = P_2
    N_{i+1} = ReLU(conv3x3(P_{i+1} + ReLU(conv3x3_stride2(N_i))))

This is the paper's text, which puts a ReLU behind each convolution of the path. MMDetection's PAFPN has none by
default, and takes the strided convolution of the sum before its 3x3 convolution instead of N_i: its weights are those
of another network.

Shape shorthand: N images, C channels, H x W pixels; level i has stride 2**i.
"""

import math
from collections.abc import Callable, Sequence

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from maskrcnn_plus.backbones import TimmBackbone

__all__ = ["PAFPN", "build_resnet_pafpn_backbone", "build_timm_pafpn_backbone"]


class PAFPN(FPN):
    """Drop-in for Detectron2's FPN: same arguments, outputs "p2", "p3", ... and weights, plus those of the path.

    The added convolutions are `pafpn_down{i}` (from level i - 1, stride 2) and `pafpn_output{i}`.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm: str | Callable[[int], nn.Module] = "",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
    ):
        """Build the layers.

        Args:
            bottom_up: the backbone below.
            in_features: its features, finest first, each with twice the stride of the one before.
            out_channels: channels C of every level.
            norm: norm of every convolution, FPN's included: "" (they have biases then), "GN", "BN", "SyncBN",
                "FrozenBN", or a function from channels to a module.
            top_block: makes further levels, from this neck's output or from a feature of `bottom_up`. One that reads
                this neck's output runs on FPN's too, whose result is dropped.
            fuse_type: how FPN combines its levels: "sum" or "avg".

        Raises:
            ValueError: unknown norm, or features that `bottom_up` does not have.
        """
        shapes = bottom_up.output_shape()
        if missing := [feature for feature in in_features if feature not in shapes]:
            raise ValueError(f"PAFPN: in_features {missing} are not among the backbone's, {', '.join(shapes)}")
        try:
            get_norm(norm, out_channels)
        except KeyError:
            raise ValueError(
                f'PAFPN: norm {norm!r} is not known; take "", "GN", "BN", "SyncBN" or "FrozenBN"'
            ) from None
        super().__init__(bottom_up, in_features, out_channels, norm, top_block, fuse_type)
        self._stages = [int(math.log2(shapes[feature].stride)) for feature in in_features]
        for stage in self._stages[1:]:
            for name, stride in ((f"pafpn_down{stage}", 2), (f"pafpn_output{stage}", 1)):
                conv = Conv2d(
                    out_channels,
                    out_channels,
                    kernel_size=3,
                    stride=stride,
                    padding=1,
                    bias=norm == "",
                    norm=get_norm(norm, out_channels),
                    activation=F.relu,
                )
                weight_init.c2_msra_fill(conv)
                self.add_module(name, conv)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The pyramid of a batch of images.

        Args:
            x: [N, channels of the images, H, W], with H and W multiples of `size_divisibility`.

        Returns:
            "p<i>" -> [N, C, H / 2**i, W / 2**i], finest first.

        Raises:
            ValueError: H or W is no such multiple.
        """
        if any(side % self.size_divisibility for side in x.shape[-2:]):
            raise ValueError(
                f"PAFPN needs images with sides that are multiples of {self.size_divisibility}, got {list(x.shape)}: "
                "pad them with ImageList.from_tensors(images, backbone.size_divisibility)"
            )
        pyramid = super().forward(x)
        level = pyramid[f"p{self._stages[0]}"]
        for stage in self._stages[1:]:
            down = getattr(self, f"pafpn_down{stage}")(level)  # [N, C, H / 2**stage, W / 2**stage]
            level = getattr(self, f"pafpn_output{stage}")(pyramid[f"p{stage}"] + down)
            pyramid[f"p{stage}"] = level
        if self.top_block is not None and self.top_block.in_feature in pyramid:
            top_levels = self.top_block(pyramid[self.top_block.in_feature])
            pyramid.update(zip(self._out_features[len(self._stages) :], top_levels, strict=True))
        return pyramid


@BACKBONE_REGISTRY.register()
def build_resnet_pafpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PAFPN:
    """PAFPN on Detectron2's ResNet, from `cfg.MODEL.FPN` and `cfg.MODEL.RESNETS`, for MODEL.BACKBONE.NAME."""
    return _build_pafpn(cfg, build_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_timm_pafpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PAFPN:
    """PAFPN on a timm network, from `cfg.MODEL.FPN` and `cfg.MODEL.TIMM`, for MODEL.BACKBONE.NAME."""
    return _build_pafpn(cfg, TimmBackbone(cfg, input_shape))


def _build_pafpn(cfg: CfgNode, bottom_up: Backbone) -> PAFPN:
    return PAFPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
