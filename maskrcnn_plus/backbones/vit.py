"""Plain vision transformers of timm as a Detectron2 backbone of one feature map, for a simple feature pyramid.

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021; used for detection as in Li, Mao, Girshick, He, "Exploring
Plain Vision Transformer Backbones for Object Detection" (ViTDet), 2022, section 3.

Shape shorthand: N images, C channels, H x W the grid of patches, P prefix tokens (class token and registers).
"""

from collections.abc import Mapping, Sequence

import timm
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from omegaconf import OmegaConf
from timm.layers import PatchEmbed
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskrcnn_plus.arguments import check_arguments
from maskrcnn_plus.backbones.pretrained import load_backbone_weights
from maskrcnn_plus.backbones.timm import check_network, check_options
from maskrcnn_plus.backbones.window_attention import window_attention
from maskrcnn_plus.config import with_defaults

__all__ = ["PlainViT"]

# Arguments of timm.create_model that PlainViT sets itself, or under which the tokens would be no grid.
RESERVED_OPTIONS = {
    "checkpoint_path",
    "drop_path_rate",
    "dynamic_img_pad",
    "dynamic_img_size",
    "features_only",
    "global_pool",
    "img_size",
    "in_chans",
    "num_classes",
    "patch_drop_rate",
    "patch_size",
    "pretrained",
}


@BACKBONE_REGISTRY.register()
class PlainViT(Backbone):
    """The patch tokens after the last block of a timm ViT, as the feature map "last_feat".

    Networks are those that timm builds as `VisionTransformer` or `Eva`: MAE, DINOv2 (with and without registers), CLIP,
    SigLIP, DINOv3, EVA-02 ... Images have any size that is a multiple of the patch size: learned position embeddings
    are resampled to the grid of the batch (bicubic, antialiased, as timm does), rotary ones are computed for it.

    The pixels are normalised by the meta-architecture (`pixel_mean`, `pixel_std`); `pixel_mean` and `pixel_std`
    of `maskrcnn_plus.backbones.timm` give a network's own.
    """

    @configurable
    def __init__(
        self,
        name: str,
        *,
        patch_size: int = 16,
        window_size: int = 14,
        global_blocks: Sequence[int] | None = None,
        keep_prefix_tokens: bool = True,
        final_norm: bool = False,
        in_chans: int = 3,
        weights: str = "",
        drop_path_rate: float = 0.0,
        freeze_at: int = 0,
        activation_checkpointing: bool = False,
        options: Mapping | None = None,
    ):
        """Build the network.

        Args:
            name: timm's name of the network, with or without a tag: "vit_base_patch16_224.mae",
                "vit_small_patch14_dinov2", "vit_small_patch16_dinov3".
            patch_size: pixels; the stride of the feature map. Where the network has another (14 in DINOv2), the kernel
                of its patch embedding is resampled after the weights are loaded (Beyer et al., "FlexiViT", 2023), and
                its grid of position embeddings stays.
            window_size: side in patches of the non-overlapping windows within which blocks attend; 0: all blocks are
                global. Windows at the right and bottom edge hold the patches that are left. ViTDet fills them up with
                zero tokens, to which patches attend; here there are none.
            global_blocks: indices from 0 of the blocks that attend globally all the same. None: the last block of each
                quarter, which is [2, 5, 8, 11] for 12 blocks.
            keep_prefix_tokens: whether class token and registers go through the network. In a windowed block every
                window sees them, and what they take from the windows is averaged over the windows. False removes them,
                as ViTDet does; registers are best kept.
            final_norm: apply the network's norm after the last block; ViTDet does not. Without it the norm is not
                built, so that no parameter is unused.
            in_chans: channels of the input.
            weights: "" random, "timm" timm's download, or a file with timm's names; see `load_backbone_weights`.
            drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
            freeze_at: 0 trains everything, 1 freezes the embeddings, 1 + k the first k blocks as well.
            activation_checkpointing: in training, keep only the input of each block and compute the block again in the
                backward pass: less memory, more time.
            options: further arguments of `timm.create_model`, e.g. {"depth": 6}.

        Raises:
            ValueError: unknown network or one of another kind, options out of range, or weights that do not fit.
        """
        super().__init__()
        options = OmegaConf.to_container(options, resolve=True) if OmegaConf.is_config(options) else dict(options or {})
        check_arguments(
            patch_size=(patch_size, patch_size >= 1, "at least 1"),
            window_size=(window_size, window_size >= 0, "at least 0"),
            drop_path_rate=(drop_path_rate, 0 <= drop_path_rate < 1, "in [0, 1)"),
        )
        net = _create_network(name, in_chans, drop_path_rate, options)
        depth = len(net.blocks)
        if global_blocks is None:
            global_blocks = [depth * quarter // 4 - 1 for quarter in range(1, 5)]
        elif not all(0 <= block < depth for block in global_blocks):
            raise ValueError(
                f"global_blocks of {name!r} must be indices from 0 to {depth - 1}, got {list(global_blocks)}"
            )
        if not 0 <= freeze_at <= depth + 1:
            raise ValueError(f"freeze_at of {name!r} must be 0 (nothing) to {depth + 1} (everything), got {freeze_at}")
        self.name = name
        self.in_chans = in_chans
        self.patch_size = patch_size
        self.window_size = window_size
        self.activation_checkpointing = activation_checkpointing
        self._global_blocks = set(global_blocks) if window_size else set(range(depth))
        for index in set(range(depth)) - self._global_blocks:
            if type(net.blocks[index]) not in (Block, EvaBlock):
                kind = type(net.blocks[index]).__name__
                raise ValueError(f"blocks of {name!r} ({kind}) do not take windows: use window_size=0")
        if final_norm and isinstance(net.norm, nn.Identity):
            raise ValueError(f"timm model {name!r} has no norm after its last block: use final_norm=False")

        # The feature map does not depend on these: distributed training refuses parameters without gradient.
        net.attn_pool, net.fc_norm = None, nn.Identity()
        if not final_norm:
            net.norm = nn.Identity()
        load_backbone_weights(net, name, weights, in_chans=in_chans, options=options)
        if not keep_prefix_tokens:
            _drop_prefix_tokens(net)
        if net.patch_embed.patch_size != (patch_size, patch_size):
            size = tuple(patch_size * patches for patches in net.patch_embed.grid_size)
            net.set_input_size(img_size=size, patch_size=(patch_size, patch_size))
        _freeze(net, freeze_at)
        self.net = net
        self._out_features = ["last_feat"]
        self._out_feature_channels = {"last_feat": net.embed_dim}
        self._out_feature_strides = {"last_feat": patch_size}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """The arguments from `cfg.MODEL.VIT` (see `maskrcnn_plus.config.add_config`), whose keys are their names."""
        own = {key.lower(): value for key, value in with_defaults(cfg).MODEL.VIT.items()}
        return {**own, "in_chans": input_shape.channels}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The feature map of a batch of normalised images.

        Args:
            x: [N, in_chans, H * patch_size, W * patch_size].

        Returns:
            {"last_feat": [N, C, H, W]}.

        Raises:
            ValueError: `x` is empty, has another number of dimensions or channels, or a size that is no multiple of the
                patches.
        """
        size = self.patch_size
        if x.dim() != 4 or x.shape[1] != self.in_chans or x.shape[2] % size or x.shape[3] % size or 0 in x.shape:
            raise ValueError(
                f"PlainViT {self.name!r} expects images [N, {self.in_chans}, height, width] padded to a multiple of "
                f"{size} pixels, got {list(x.shape)}"
            )
        net, grid = self.net, (x.shape[2] // size, x.shape[3] // size)
        embedded = net._pos_embed(net.patch_embed(x))
        tokens, rope = embedded if isinstance(embedded, tuple) else (embedded, None)  # [N, P + H * W, C]
        tokens = net.norm_pre(tokens)
        for index in range(len(net.blocks)):
            if self.activation_checkpointing and self.training:
                tokens = checkpoint(self._run_block, index, tokens, rope, grid, use_reentrant=False)
            else:
                tokens = self._run_block(index, tokens, rope, grid)
        patches = net.norm(tokens)[:, net.num_prefix_tokens :]  # [N, P + H * W, C] -> [N, H * W, C]
        return {"last_feat": patches.transpose(1, 2).unflatten(2, grid)}  # [N, H * W, C] -> [N, C, H, W]

    def _run_block(self, index: int, tokens: Tensor, rope: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """[N, P + H * W, C] -> the same, through one block, global or windowed."""
        block = self.net.blocks[index]
        if getattr(self.net, "rope_mixed", False):
            rope = rope[index]
        if index in self._global_blocks:
            return block(tokens) if rope is None else block(tokens, rope=rope)
        # A block of timm written out, so that only its attention is within windows: norms and MLP see each token by
        # itself, and stochastic depth drops a branch of a whole image, not of one window.
        attended = window_attention(
            block.attn, block.norm1(tokens), grid, self.window_size, self.net.num_prefix_tokens, rope
        )
        tokens = tokens + block.drop_path1(_layer_scale(block, 1, attended))
        return tokens + block.drop_path2(_layer_scale(block, 2, block.mlp(block.norm2(tokens))))

    @property
    def size_divisibility(self) -> int:
        """The patch size: images are padded to a multiple of it."""
        return self.patch_size


def _layer_scale(block: nn.Module, branch: int, x: Tensor) -> Tensor:
    """The learned factor of a block's attention (branch 1) or MLP (branch 2), where it has one."""
    if isinstance(block, Block):
        return getattr(block, f"ls{branch}")(x)
    gamma = getattr(block, f"gamma_{branch}")
    return x if gamma is None else gamma * x


def _create_network(name: str, in_chans: int, drop_path_rate: float, options: dict) -> VisionTransformer | Eva:
    """timm's network with random weights and without a classifier, for images of any size."""
    check_network(name, "*vit*")
    check_options(options, RESERVED_OPTIONS, "PlainViT")
    arguments = {"in_chans": in_chans, "drop_path_rate": drop_path_rate, "num_classes": 0, "dynamic_img_size": True}
    try:
        net = timm.create_model(name, pretrained=False, **arguments, **options)
    except Exception as error:
        raise ValueError(f"timm cannot build {name!r} as a plain ViT with {arguments | options}: {error}") from error
    if type(net) not in (VisionTransformer, Eva) or type(net.patch_embed) is not PatchEmbed:
        raise ValueError(
            f"timm model {name!r} is a {type(net).__name__}, not a plain ViT (VisionTransformer or Eva with patches): "
            "use TimmBackbone for convolutional and hierarchical networks"
        )
    return net


def _drop_prefix_tokens(net: VisionTransformer | Eva) -> None:
    """Removes class token and registers with their position embeddings."""
    if net.pos_embed is not None and not net.no_embed_class:
        net.pos_embed = nn.Parameter(net.pos_embed.detach()[:, net.num_prefix_tokens :].clone())
    net.cls_token = net.reg_token = None
    net.num_prefix_tokens = 0
    for block in net.blocks:
        if hasattr(block.attn, "num_prefix_tokens"):  # of Eva: how many tokens its rotary embedding passes over
            block.attn.num_prefix_tokens = 0


def _freeze(net: VisionTransformer | Eva, freeze_at: int) -> None:
    """Freezes the embeddings (from 1 on) and the first `freeze_at` - 1 blocks."""
    blocks = tuple(f"blocks.{index}." for index in range(freeze_at - 1))
    for name, parameter in net.named_parameters():
        is_embedding = not name.startswith(("blocks.", "norm."))
        if freeze_at and (is_embedding or name.startswith(blocks)):
            parameter.requires_grad_(False)
