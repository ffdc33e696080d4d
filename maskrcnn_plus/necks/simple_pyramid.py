"""The simple feature pyramid of ViTDet: every level from the last feature map of a plain backbone alone.

Li, Mao, Girshick, He, "Exploring Plain Vision Transformer Backbones for Object Detection", 2022, section 3. The layers
and the names of their parameters are those of the development head of Detectron2 (`detectron2.modeling.backbone.vit`),
which v0.6 lacks.

Shape shorthand: N images, C channels, H x W pixels.
"""

import math
from collections.abc import Callable, Sequence

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from maskrcnn_plus.backbones.vit import PlainViT

__all__ = ["SimpleFeaturePyramid"]


@BACKBONE_REGISTRY.register()
class SimpleFeaturePyramid(Backbone):
    """Pyramid levels by transposed convolution or max pooling of one feature map.

    Level "p<k>" has stride 2**k. Checkpoints of ViTDet have these layers under the same names below `backbone.`; their
    backbones have relative position embeddings and do not load into `PlainViT`.
    """

    @configurable
    def __init__(
        self,
        net: Backbone,
        *,
        in_feature: str = "last_feat",
        out_channels: int = 256,
        scale_factors: Sequence[float] = (4.0, 2.0, 1.0, 0.5),
        top_block: nn.Module | None = None,
        norm: str | Callable[[int], nn.Module] = "LN",
        square_pad: int = 0,
    ):
        """Build the levels.

        Args:
            net: the backbone.
            in_feature: name of its feature map that the pyramid is made of.
            out_channels: channels of every level.
            scale_factors: size of each level relative to that feature map, finest first: some of 4, 2, 1 and 0.5, each
                half the one before. At stride 16, (4, 2, 1, 0.5) are the strides 4, 8, 16, 32.
            top_block: makes further levels of the last one, as in Detectron2's FPN, e.g. `LastLevelMaxPool()`.
            norm: "LN" (over the channels of each pixel), "GN", "BN", "FrozenBN", "SyncBN", "" for none, or a callable
                from a number of channels to a module.
            square_pad: side in pixels of a square that images are padded to, or 0. The development head of Detectron2
                reads it from `padding_constraints`; v0.6 has no such padding and ignores it.

        Raises:
            ValueError: unknown feature, scale factors or norm, or levels whose strides are no powers of two in
                sequence.
        """
        super().__init__()
        shapes = net.output_shape()
        if in_feature not in shapes:
            raise ValueError(f"in_feature {in_feature!r} is not a feature of the backbone, which has {list(shapes)}")
        levels = _levels(shapes[in_feature].stride, scale_factors)
        for level, scale in zip(levels, scale_factors, strict=True):
            # The names of Detectron2's head, under which ViTDet's checkpoints store these layers.
            self.add_module(f"simfp_{level}", _stage(scale, shapes[in_feature].channels, out_channels, norm))
        self.net = net
        self.in_feature = in_feature
        self.top_block = top_block
        self._stages = [f"simfp_{level}" for level in levels]
        if top_block is not None:
            levels += range(levels[-1] + 1, levels[-1] + 1 + top_block.num_levels)
        self._out_features = [f"p{level}" for level in levels]
        self._out_feature_strides = {f"p{level}": 2**level for level in levels}
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = 2 ** levels[len(self._stages) - 1]
        self._square_pad = square_pad
        if square_pad % self._size_divisibility:
            raise ValueError(f"square_pad must be a multiple of {self._size_divisibility}, got {square_pad}")

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """A `PlainViT` of `cfg.MODEL.VIT` under a pyramid p2 ... p6 of `cfg.MODEL.FPN`'s OUT_CHANNELS and NORM."""
        return {
            "net": PlainViT(cfg, input_shape),
            "out_channels": cfg.MODEL.FPN.OUT_CHANNELS,
            "norm": cfg.MODEL.FPN.NORM,
            "top_block": LastLevelMaxPool(),
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The pyramid of a batch of normalised images.

        Args:
            x: [N, channels, H, W], with H and W multiples of `size_divisibility`.

        Returns:
            Name -> [N, out_channels, H / stride, W / stride], finest first.

        Raises:
            ValueError: H or W is no such multiple.
        """
        if x.shape[-2] % self._size_divisibility or x.shape[-1] % self._size_divisibility:
            raise ValueError(
                f"SimpleFeaturePyramid expects images padded to a multiple of {self._size_divisibility} pixels, got "
                f"{list(x.shape)}: pad them with ImageList.from_tensors(images, backbone.size_divisibility)"
            )
        bottom_up = self.net(x)
        results = [getattr(self, stage)(bottom_up[self.in_feature]) for stage in self._stages]
        if self.top_block is not None:
            name = self.top_block.in_feature
            top_input = bottom_up[name] if name in bottom_up else results[self._out_features.index(name)]
            results.extend(self.top_block(top_input))
        return dict(zip(self._out_features, results, strict=True))

    @property
    def size_divisibility(self) -> int:
        """The stride of the coarsest level that is not of `top_block`."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """How the development head of Detectron2 pads images."""
        return {"size_divisibility": self._size_divisibility, "square_size": self._square_pad}


def _levels(stride: int, scale_factors: Sequence[float]) -> list[int]:
    """log2 of the stride of every level."""
    if not scale_factors or any(scale not in (4, 2, 1, 0.5) for scale in scale_factors):
        raise ValueError(f"scale_factors must be some of 4, 2, 1 and 0.5, got {list(scale_factors)}")
    levels = [math.log2(stride / scale) for scale in scale_factors]
    if any(level != levels[0] + position or level % 1 for position, level in enumerate(levels)):
        raise ValueError(
            f"the strides of a pyramid must be powers of two, each twice the one before; stride {stride} with "
            f"scale_factors {list(scale_factors)} gives {[stride / scale for scale in scale_factors]} (a ViT of patch "
            "size 14 needs patch_size=16)"
        )
    return [int(level) for level in levels]


def _stage(scale: float, channels: int, out_channels: int, norm: str | Callable) -> nn.Sequential:
    """[N, channels, H, W] -> [N, out_channels, scale * H, scale * W]."""
    if scale == 4:
        resize = [
            nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2),
            _norm(norm, channels // 2) or nn.Identity(),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 2, channels // 4, kernel_size=2, stride=2),
        ]
        channels = channels // 4
    elif scale == 2:
        resize = [nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2)]
        channels = channels // 2
    else:
        resize = [] if scale == 1 else [nn.MaxPool2d(kernel_size=2, stride=2)]
    bias = norm == ""
    return nn.Sequential(
        *resize,
        Conv2d(channels, out_channels, kernel_size=1, bias=bias, norm=_norm(norm, out_channels)),
        Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=bias, norm=_norm(norm, out_channels)),
    )


def _norm(norm: str | Callable, channels: int) -> nn.Module | None:
    """A norm over `channels`; Detectron2's `get_norm`, which in v0.6 knows no "LN"."""
    try:
        return get_norm(LayerNorm2d if norm == "LN" else norm, channels)
    except KeyError as error:
        raise ValueError(
            f'norm must be "LN", "GN", "BN", "FrozenBN", "SyncBN", "" or a callable, got {norm!r}'
        ) from error
