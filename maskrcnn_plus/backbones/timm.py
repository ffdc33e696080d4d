"""Any convolutional or hierarchical network of timm as a Detectron2 backbone.

timm (Wightman, "PyTorch Image Models", 2019) builds a network with `features_only=True`; its feature maps get the names
of Detectron2's ResNet: "res2" at stride 4 up to "res5" at stride 32.

Shape shorthand: N images, C channels, H x W pixels.
"""

import difflib
from collections.abc import Mapping, Sequence

import timm
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from omegaconf import OmegaConf
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn

from maskrcnn_plus.backbones.pretrained import load_backbone_weights

__all__ = ["TimmBackbone", "pixel_statistics"]

STRIDES = {"stem": 2, "res1": 2, "res2": 4, "res3": 8, "res4": 16, "res5": 32}
# Arguments of timm.create_model that TimmBackbone sets itself or that would load weights without its checks.
RESERVED_OPTIONS = {"features_only", "out_indices", "in_chans", "num_classes", "pretrained", "checkpoint_path"}


@BACKBONE_REGISTRY.register()
class TimmBackbone(Backbone):
    """The feature maps of a timm network under Detectron2's names.

    Args:
        name: timm's name of the network, with or without a tag: "resnet50", "convnext_tiny.fb_in22k".
        out_features: which feature maps to return: "res2", "res3", "res4", "res5" at stride 4, 8, 16, 32, and
            "stem" (also called "res1") at stride 2. Where a network has several at a stride, it is the deepest.
            Stages after the last of them are not built.
        in_chans: channels C of the input.
        weights: "" random, "timm" timm's download, "package" an installed weights package, or a file; see
            `load_backbone_weights`.
        freeze_at: as in Detectron2's ResNet: 0 trains everything, 1 freezes the stem, 2 the stem and res2, ... 5 all.
            Frozen is every parameter that the feature at that stride depends on, found by automatic differentiation
            rather than by names, and every batch norm among them stops updating its statistics. In a network that
            fuses its resolutions before they are returned (HRNet) that is most of it.
        norm: "BN" trains the batch norms as timm builds them; "FrozenBN" fixes all of them to their statistics. Layer
            norms and the like are the network's own and stay.
        options: further arguments of `timm.create_model`, e.g. {"drop_path_rate": 0.1}. Networks made for one image
            size need to be told that sizes vary; for Swin it is {"strict_img_size": False}.

    The pixels are normalised by the meta-architecture (`pixel_mean`, `pixel_std`), not here. timm's weights expect RGB
    with the network's own statistics: `pixel_statistics` gives them in 0..255.

    Raises:
        ValueError: unknown network, one without the features asked for, options that it does not take, a batch norm
            that cannot be frozen, or weights that do not fit.
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
        super().__init__()
        options = OmegaConf.to_container(options, resolve=True) if OmegaConf.is_config(options) else dict(options or {})
        _check_arguments(name, out_features, freeze_at, norm, options)
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

        load_backbone_weights(net, name, weights, in_chans=in_chans, options=options)
        if freeze_index is not None:
            _freeze_up_to(net, built.index(freeze_index), _probe_size(net, options), in_chans)
        if norm == "FrozenBN":
            _freeze_batch_norms(net)
        self.net = net

        self._out_features = sorted(out_indices, key=lambda feature: (STRIDES[feature], feature))
        self._positions = [built.index(out_indices[feature]) for feature in self._out_features]
        self._out_feature_channels = {f: net.feature_info.info[i]["num_chs"] for f, i in out_indices.items()}
        self._out_feature_strides = {feature: STRIDES[feature] for feature in out_indices}
        self._channels_last = getattr(net, "output_fmt", "NCHW") == "NHWC"

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """The arguments from `cfg.MODEL.TIMM` (see `maskrcnn_plus.config.add_config`) and BACKBONE.FREEZE_AT."""
        if "TIMM" not in cfg.MODEL:
            raise KeyError("cfg.MODEL.TIMM is missing: call maskrcnn_plus.config.add_config(cfg) before merging files")
        return {
            "name": cfg.MODEL.TIMM.NAME,
            "out_features": cfg.MODEL.TIMM.OUT_FEATURES,
            "in_chans": input_shape.channels,
            "weights": cfg.MODEL.TIMM.WEIGHTS,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            "norm": cfg.MODEL.TIMM.NORM,
            "options": dict(cfg.MODEL.TIMM.OPTIONS),
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Feature maps of a batch of normalised images.

        Args:
            x: [N, in_chans, H, W].

        Returns:
            Name -> [N, C, about H / stride, about W / stride], finest first.

        Raises:
            ValueError: `x` has another number of dimensions or channels.
        """
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise ValueError(
                f"TimmBackbone {self.name!r} expects images [N, {self.in_chans}, H, W], got {list(x.shape)}: "
                "check in_chans, pixel_mean and the channels of the images"
            )
        features = self.net(x)
        features = [features[position] for position in self._positions]
        if self._channels_last:
            features = [f.permute(0, 3, 1, 2) for f in features]  # [N, H, W, C] -> [N, C, H, W]
        return dict(zip(self._out_features, features, strict=True))

    @property
    def size_divisibility(self) -> int:
        """The largest stride: images are padded to a multiple of it."""
        return max(self._out_feature_strides.values())

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature, finest first."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """Detectron2's frozen batch norm followed by the dropout and activation that timm fuses into its batch norm."""

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__(num_features, eps)
        self.drop = nn.Identity()
        self.act = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        return self.act(self.drop(super().forward(x)))


def pixel_statistics(name: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels that a timm network was trained with.

    Returns:
        `pixel_mean` and `pixel_std` for Detectron2's meta-architecture: RGB order, in 0..255.

    Raises:
        ValueError: unknown network or tag, or one for which timm records no statistics.
    """
    _check_name(name)
    try:
        pretrained = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ValueError(f"timm model {name!r}: {error}") from error
    if pretrained is None:
        raise ValueError(f"timm records no pixel statistics for {name!r}: give pixel_mean and pixel_std yourself")
    return [255.0 * value for value in pretrained.mean], [255.0 * value for value in pretrained.std]


def _check_name(name: str) -> None:
    """Raises ValueError with the closest names where timm has no such network."""
    if not isinstance(name, str) or not timm.is_model(name):
        close = difflib.get_close_matches(str(name).split(".")[0], timm.list_models(), n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them all"
        raise ValueError(f"timm has no model named {name!r}: {hint}")


def _check_arguments(name: str, out_features: Sequence[str], freeze_at: int, norm: str, options: dict) -> None:
    """Raises ValueError for arguments that no network could satisfy."""
    _check_name(name)
    unknown = [feature for feature in out_features if feature not in STRIDES]
    if isinstance(out_features, str) or unknown or not out_features:
        raise ValueError(f"out_features must be a list of some of {', '.join(STRIDES)}, got {out_features!r}")
    if freeze_at not in range(6):
        raise ValueError(f"freeze_at must be 0 (nothing) to 5 (everything), got {freeze_at!r}")
    if norm not in ("BN", "FrozenBN"):
        raise ValueError(f'norm must be "BN" or "FrozenBN", got {norm!r}')
    if reserved := sorted(RESERVED_OPTIONS & options.keys()):
        raise ValueError(f"options must not contain {', '.join(reserved)}: TimmBackbone has its own arguments for them")


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
            f"it has strides {', '.join(available)}"
        )
    return index_of_stride[stride]


def _drop_unused_blocks(net: nn.Module) -> None:
    """Cuts the stages after the last feature, which timm's EfficientNet and MobileNet extractors build and run."""
    last_module = net.feature_info.module_name()[-1]
    if isinstance(getattr(net, "blocks", None), nn.Sequential) and last_module.startswith("blocks."):
        del net.blocks[int(last_module.split(".")[1]) + 1 :]


def _probe_size(net: nn.Module, options: dict) -> tuple[int, int]:
    """(height, width) of an image that the network accepts."""
    pretrained = net.pretrained_cfg
    size = options.get("img_size") or (pretrained["input_size"][1:] if pretrained.get("fixed_input_size") else 64)
    return (size, size) if isinstance(size, int) else tuple(size)


def _freeze_up_to(net: nn.Module, position: int, size: tuple[int, int], in_chans: int) -> None:
    """Freezes every parameter that output `position` of the network depends on, and the batch norms among them."""
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    net.eval()  # a training pass would update the running statistics
    with torch.enable_grad():
        output = net(torch.zeros(1, in_chans, *size))[position]
        # A parameter outside the graph of the output has no gradient at all; one inside may have a zero gradient.
        gradients = torch.autograd.grad(output.sum(), trained, allow_unused=True)
    net.train()
    frozen = [parameter for parameter, gradient in zip(trained, gradients, strict=True) if gradient is not None]
    for parameter in frozen:
        parameter.requires_grad_(False)
    _freeze_batch_norms(net, only={id(parameter) for parameter in frozen})


def _freeze_batch_norms(module: nn.Module, only: set[int] | None = None) -> None:
    """Replaces the batch norms below `module`, or those that own a parameter with its id in `only`, by frozen ones."""
    for name, child in module.named_children():
        has_statistics = any(key == "running_var" for key, _ in child.named_buffers(recurse=False))
        chosen = only is None or any(id(parameter) in only for parameter in child.parameters(recurse=False))
        if has_statistics and chosen and not isinstance(child, FrozenBatchNorm2d):
            module.add_module(name, _frozen_batch_norm(name, child))
        else:
            _freeze_batch_norms(child, only)


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
