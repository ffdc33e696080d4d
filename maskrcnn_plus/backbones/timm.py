"""Any convolutional or hierarchical network of timm as a Detectron2 backbone.

timm (Wightman, "PyTorch Image Models", 2019) builds a network with `features_only=True`; its feature maps get the names
of Detectron2's ResNet: "res2" at stride 4 up to "res5" at stride 32.

Networks that are fused for inference (FastViT, MobileOne, RepVGG) are built in their training form, and so are their
checkpoints. For prediction `backbone.net = timm.utils.reparameterize_model(backbone.net.eval())` computes the same
with fewer layers; it needs norm="BN" and freeze_at=0, with which a checkpoint of frozen batch norms loads as well.

Shape shorthand: N images, C channels, H x W pixels.
"""

import difflib
from collections.abc import Mapping, Sequence

import timm
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from omegaconf import OmegaConf
from torch import Tensor, nn

from maskrcnn_plus.backbones.freezing import freeze_batch_norms, freeze_up_to
from maskrcnn_plus.backbones.pretrained import load_backbone_weights
from maskrcnn_plus.config import with_defaults

__all__ = ["TimmBackbone", "pixel_mean", "pixel_statistics", "pixel_std"]

STRIDES = {"stem": 2, "res1": 2, "res2": 4, "res3": 8, "res4": 16, "res5": 32}
# Arguments of timm.create_model that TimmBackbone sets itself or that would load weights without its checks.
RESERVED_OPTIONS = {"features_only", "out_indices", "in_chans", "num_classes", "pretrained", "checkpoint_path"}
PLAIN_VIT_HINT = "; for plain vision transformers there are PlainViT and SimpleFeaturePyramid"
# timm module that defines a network -> options with which it takes images of any size.
ANY_SIZE_OPTIONS = {
    module: {"strict_img_size": False}
    for module in ("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr")
}
# What a network is made of -> its `size_divisibility` and the multiple that it takes, found once in a process.
_SIZE_RULES: dict[tuple, tuple[int, int]] = {}


@BACKBONE_REGISTRY.register()
class TimmBackbone(Backbone):
    """The feature maps of a timm network under Detectron2's names.

    Images whose sides are multiples of `size_divisibility` have feature maps of exactly H / stride x W / stride, which
    is tried out when the network is built. For other sizes the network rounds as it does, most up, ConvNeXt down; Swin
    takes multiples of 4 only, HRNet of 32.

    The pixels are normalised by the meta-architecture (`pixel_mean`, `pixel_std`), not here. timm's weights expect RGB
    with the network's own statistics, which `pixel_mean` and `pixel_std` give: in a config
    `model.pixel_mean = L(pixel_mean)(name="${model.backbone.bottom_up.name}")` follows the name.
    """

    @configurable
    def __init__(
        self,
        name: str,
        *,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        in_chans: int = 3,
        weights: str = "",
        freeze_at: int = 0,
        norm: str = "BN",
        options: Mapping | None = None,
    ):
        """Build the network.

        Args:
            name: timm's name of the network, with or without a tag: "resnet50", "convnext_tiny.fb_in22k".
            out_features: which feature maps to return: "res2", "res3", "res4", "res5" at stride 4, 8, 16, 32, and
                "stem" (also called "res1") at stride 2. Where a network has several at a stride, it is the deepest.
                Stages after the last of them are not built, except where the network fuses all its stages (HRNet).
            in_chans: channels C of the input.
            weights: "" random, "timm" timm's download, "package" an installed weights package, or a file; see
                `load_backbone_weights`.
            freeze_at: as in Detectron2's ResNet: 0 trains everything, 1 freezes the stem, 2 the stem and res2, ... 5
                all. Frozen is every parameter that the feature at that stride depends on, found by automatic
                differentiation rather than by names, and every batch norm among them stops updating its statistics. In
                a network that fuses its resolutions before they are returned (HRNet) that is most of it.
            norm: "BN" trains the batch norms as timm builds them; "FrozenBN" fixes all of them to their statistics.
                Layer norms and the like are the network's own and stay.
            options: further arguments of `timm.create_model`, e.g. {"drop_path_rate": 0.1}. Swin and SwinV2, which timm
                makes for one image size, get {"strict_img_size": False} on their own, and pad their windows. Where
                their coarsest maps were a single window in pretraining, timm does not shift it; {"always_partition":
                True} shifts there too, as the Swin authors' detectors do.

        Raises:
            ValueError: unknown network, one without the features asked for or made for a single image size (MaxViT,
                plain ViT), options that it does not take, a batch norm that cannot be frozen, or weights that do not
                fit.
        """
        super().__init__()
        options = OmegaConf.to_container(options, resolve=True) if OmegaConf.is_config(options) else dict(options or {})
        _check_arguments(name, out_features, freeze_at, norm, options)
        options = {**ANY_SIZE_OPTIONS.get(timm.model_entrypoint(name).__module__.rpartition(".")[2], {}), **options}
        self.name = name
        self.in_chans = in_chans

        net = _create_network(name, in_chans=in_chans, **options)
        index_of_stride = {info["reduction"]: index for index, info in enumerate(net.feature_info.info)}
        out_indices = {feature: _feature_index(name, index_of_stride, feature) for feature in out_features}
        built = set(out_indices.values())
        freeze_index = _feature_index(name, index_of_stride, f"res{freeze_at}", "freeze_at") if freeze_at else None
        if freeze_index is not None:
            # A level beyond the deepest feature freezes the whole network.
            freeze_index = min(freeze_index, max(built))
            built.add(freeze_index)
        built = sorted(built)
        if built != list(net.feature_info.out_indices):
            net = _create_network(name, in_chans=in_chans, out_indices=tuple(built), **options)
            _drop_unused_blocks(net)
        made_of = (name, in_chans, tuple(built), str(sorted(options.items())))
        if made_of not in _SIZE_RULES:
            _SIZE_RULES[made_of] = _find_size_rules(net, name, in_chans)
        self._size_divisibility, self._side_multiple = _SIZE_RULES[made_of]

        load_backbone_weights(net, name, weights, in_chans=in_chans, options=options)
        if freeze_index is not None:
            freeze_up_to(net, built.index(freeze_index), self._size_divisibility, in_chans)
        if norm == "FrozenBN":
            freeze_batch_norms(net)
        self.net = net

        self._out_features = sorted(out_indices, key=lambda feature: (STRIDES[feature], feature))
        self._positions = [built.index(out_indices[feature]) for feature in self._out_features]
        self._out_feature_channels = {f: net.feature_info.info[i]["num_chs"] for f, i in out_indices.items()}
        self._out_feature_strides = {feature: STRIDES[feature] for feature in out_indices}
        self._channels_last = _is_channels_last(net)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """The arguments from `cfg.MODEL.TIMM`, whose keys are their names, and BACKBONE.FREEZE_AT."""
        own = {key.lower(): value for key, value in with_defaults(cfg).MODEL.TIMM.items()}
        return {**own, "in_chans": input_shape.channels, "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Feature maps of a batch of normalised images.

        Args:
            x: [N, in_chans, H, W].

        Returns:
            Name -> [N, C, H / stride, W / stride], finest first; rounded as the network does where H and W are not
            multiples of `size_divisibility`.

        Raises:
            ValueError: `x` has another number of dimensions or channels, or sides that the network cannot take.
        """
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise ValueError(
                f"TimmBackbone {self.name!r} expects images [N, {self.in_chans}, H, W], got {list(x.shape)}: "
                "check in_chans, pixel_mean and the channels of the images"
            )
        if any(side % self._side_multiple for side in x.shape[2:]):
            raise ValueError(
                f"TimmBackbone {self.name!r} expects image sides that are multiples of {self._side_multiple}, got "
                f"{x.shape[2]} x {x.shape[3]}: pad the images to size_divisibility, as Detectron2's models do"
            )
        features = self.net(x)
        features = [features[position] for position in self._positions]
        if self._channels_last:
            features = [f.permute(0, 3, 1, 2) for f in features]  # [N, H, W, C] -> [N, C, H, W]
        return dict(zip(self._out_features, features, strict=True))

    @property
    def size_divisibility(self) -> int:
        """Images are padded to a multiple of it: the largest stride, or what the network needs inside."""
        return self._size_divisibility


def pixel_statistics(name: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels that a timm network was trained with.

    Returns:
        `pixel_mean` and `pixel_std` for Detectron2's meta-architecture: RGB order, in 0..255.

    Raises:
        ValueError: unknown network or tag, or one for which timm records no statistics.
    """
    check_network(name)
    try:
        pretrained = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ValueError(f"timm model {name!r}: {error}") from error
    if pretrained is None:
        raise ValueError(f"timm records no pixel statistics for {name!r}: give pixel_mean and pixel_std yourself")
    return [255.0 * value for value in pretrained.mean], [255.0 * value for value in pretrained.std]


def pixel_mean(name: str, in_chans: int = 3) -> list[float]:
    """Mean of the pixels that a timm network was trained with, a value in 0..255 a channel.

    As timm adapts the weights of the first convolution: one channel is grey, more than three begin again with red.
    """
    return _for_channels(pixel_statistics(name)[0], in_chans)


def pixel_std(name: str, in_chans: int = 3) -> list[float]:
    """Standard deviation of the pixels that a timm network was trained with, as `pixel_mean`."""
    return _for_channels(pixel_statistics(name)[1], in_chans)


def _for_channels(of_rgb: list[float], in_chans: int) -> list[float]:
    return [sum(of_rgb) / 3] if in_chans == 1 else [of_rgb[channel % 3] for channel in range(in_chans)]


def check_network(name: str, pattern: str = "") -> None:
    """Raises ValueError with the closest names, of those that `pattern` matches, where timm has no such network."""
    if not isinstance(name, str) or not timm.is_model(name):
        close = difflib.get_close_matches(str(name).split(".")[0], timm.list_models(pattern), n=5)
        hint = f"did you mean {', '.join(close)}?" if close else f"timm.list_models({pattern!r}) lists them"
        raise ValueError(f"timm has no model named {name!r}: {hint}")


def check_options(options: Mapping, reserved: set[str], owner: str) -> None:
    """Raises ValueError for options of `timm.create_model` that the backbone sets itself."""
    if found := sorted(reserved & options.keys()):
        raise ValueError(f"options must not contain {', '.join(found)}: {owner} has its own arguments for them")


def _check_arguments(name: str, out_features: Sequence[str], freeze_at: int, norm: str, options: dict) -> None:
    """Raises ValueError for arguments that no network could satisfy."""
    check_network(name)
    unknown = [feature for feature in out_features if feature not in STRIDES]
    if isinstance(out_features, str) or unknown or not out_features:
        raise ValueError(f"out_features must be a list of some of {', '.join(STRIDES)}, got {out_features!r}")
    if freeze_at not in range(6):
        raise ValueError(f"freeze_at must be 0 (nothing) to 5 (everything), got {freeze_at!r}")
    if norm not in ("BN", "FrozenBN"):
        raise ValueError(f'norm must be "BN" or "FrozenBN", got {norm!r}')
    check_options(options, RESERVED_OPTIONS, "TimmBackbone")


def _create_network(name: str, **arguments) -> nn.Module:
    """timm's feature extractor with random weights."""
    try:
        return timm.create_model(name, features_only=True, pretrained=False, **arguments)
    except Exception as error:
        raise ValueError(f"timm cannot build {name!r} as a feature extractor with {arguments}: {error}") from error


def _feature_index(name: str, index_of_stride: dict[int, int], feature: str, argument: str = "out_features") -> int:
    """timm's index of a feature map, by its stride."""
    stride = STRIDES[feature]
    if stride not in index_of_stride:
        names = {stride: feature for feature, stride in STRIDES.items()}
        available = [f"{s} ({names[s]})" if s in names else str(s) for s in index_of_stride]
        raise ValueError(
            f"{argument}: timm model {name!r} has no feature at stride {stride} ({feature}); "
            f"it has strides {', '.join(available)}{PLAIN_VIT_HINT if len(available) == 1 else ''}"
        )
    return index_of_stride[stride]


def _drop_unused_blocks(net: nn.Module) -> None:
    """Cuts the stages after the last feature, which timm's EfficientNet and MobileNet extractors build and run."""
    last_module = net.feature_info.module_name()[-1]
    if isinstance(getattr(net, "blocks", None), nn.Sequential) and last_module.startswith("blocks."):
        del net.blocks[int(last_module.split(".")[1]) + 1 :]


def _find_size_rules(net: nn.Module, name: str, in_chans: int) -> tuple[int, int]:
    """What sides must be multiples of: for feature maps of exactly side / stride, and to be taken at all.

    Found by running the network on small images.
    """
    strides = net.feature_info.reduction()
    for divisor in sorted({max(strides), max(STRIDES.values())}):
        # An odd multiple, since a network may need twice the divisor.
        height, width = 5 * divisor, 3 * divisor
        sizes, problem = _feature_sizes(net, (height, width), in_chans)
        if sizes == [(height // stride, width // stride) for stride in strides]:
            grains = (2**power for power in range(divisor.bit_length()) if 2**power < divisor)
            works = (grain for grain in grains if _feature_sizes(net, (height + grain, width + grain), in_chans)[0])
            return divisor, next(works, divisor)
    if problem:
        reason = f"does not take images of any size, as is usual with fixed windows or position embeddings ({problem})"
    else:
        reason = f"has feature maps of {sizes} pixels for an image of {height} x {width}, not image size / stride"
    raise ValueError(f"timm model {name!r} {reason}: choose another network{PLAIN_VIT_HINT}")


def _feature_sizes(net: nn.Module, size: tuple[int, int], in_chans: int) -> tuple[list[tuple[int, int]], str]:
    """(height, width) of every feature map of an image of `size`, and what went wrong, "" if nothing."""
    net.eval()  # a training pass would update the running statistics
    try:
        with torch.no_grad():
            features = net(torch.zeros(1, in_chans, *size))
    except Exception as error:
        return [], f"{type(error).__name__} at {size[0]} x {size[1]}: {error}"
    finally:
        net.train()
    height_axis = 1 if _is_channels_last(net) else 2
    return [tuple(feature.shape[height_axis : height_axis + 2]) for feature in features], ""


def _is_channels_last(net: nn.Module) -> bool:
    """Whether the features are [N, H, W, C]."""
    return getattr(net, "output_fmt", "NCHW") == "NHWC"
