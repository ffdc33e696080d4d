"""PlainViT: freezing, arguments and images that it refuses, and its yacs keys."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

from maskrcnn_plus.backbones import PlainViT
from maskrcnn_plus.config import add_config

TINY = {"embed_dim": 32, "depth": 4, "num_heads": 2}
VIT = "vit_tiny_patch16_224"


@pytest.mark.parametrize("freeze_at", [0, 1, 3, 5])
def test_freeze_at_counts_embeddings_and_blocks(freeze_at):
    model = PlainViT("vit_small_patch14_reg4_dinov2", freeze_at=freeze_at, final_norm=True, options=TINY)
    trained = {name for name, parameter in model.net.named_parameters() if parameter.requires_grad}
    embeddings = {"cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert trained & embeddings == (embeddings if freeze_at == 0 else set())
    blocks = {int(name.split(".")[1]) for name in trained if name.startswith("blocks.")}
    assert blocks == set(range(max(freeze_at - 1, 0), 4))
    assert "norm.weight" in trained


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vit_tiny_patch16_223", {}, "vit_tiny_patch16_224"),
        (None, {}, "no model named"),
        ("resnet18", {}, "plain ViT"),
        ("swin_tiny_patch4_window7_224", {}, "plain ViT"),
        ("deit_tiny_distilled_patch16_224", {}, "VisionTransformerDistilled"),
        (VIT, {"global_blocks": [4]}, "0 to 3"),
        (VIT, {"global_blocks": [-1]}, "0 to 3"),
        (VIT, {"freeze_at": 6}, "0 .nothing. to 5"),
        (VIT, {"patch_size": 0}, "patch_size"),
        (VIT, {"window_size": -1}, "window_size"),
        (VIT, {"drop_path_rate": 1.0}, "drop_path_rate"),
        ("eva02_tiny_patch14_224", {"final_norm": True}, "final_norm=False"),
        ("vit_small_patch16_18x2_224", {"global_blocks": []}, "window_size=0"),
    ],
)
def test_impossible_arguments_are_named(name, arguments, message):
    options = TINY if isinstance(name, str) and name.startswith("vit") else {}
    with pytest.raises(ValueError, match=message):
        PlainViT(name, **arguments, options=options)


def test_options_of_its_own_and_unknown_ones_are_refused():
    with pytest.raises(ValueError, match="img_size"):
        PlainViT(VIT, options={"img_size": 512})
    with pytest.raises(ValueError, match="no_such_option"):
        PlainViT(VIT, options={"no_such_option": 1})


@pytest.mark.parametrize(
    "shape", [(1, 3, 48, 50), (1, 3, 30, 48), (1, 4, 48, 48), (3, 48, 48), (1, 3, 0, 16), (0, 3, 48, 48)]
)
def test_an_image_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="multiple of 16"):
        PlainViT(VIT, options=TINY)(torch.zeros(shape))


def test_other_channels_than_three():
    model = PlainViT(VIT, in_chans=1, options=TINY)
    assert model(torch.zeros(1, 1, 32, 48))["last_feat"].shape == (1, 32, 2, 3)


def test_yacs_config_builds_the_same_network(tmp_path):
    cfg = get_cfg()
    add_config(cfg)
    path = tmp_path / "vit.yaml"
    path.write_text(
        "MODEL:\n  BACKBONE: {NAME: PlainViT}\n"
        f"  VIT: {{NAME: {VIT}, WINDOW_SIZE: 3, GLOBAL_BLOCKS: [1],\n"
        "        OPTIONS: {embed_dim: 32, depth: 4, num_heads: 2}}\n"
    )
    cfg.merge_from_file(str(path))
    model = build_backbone(cfg).eval()
    same = PlainViT(VIT, window_size=3, global_blocks=[1], options=TINY).eval()
    same.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 80, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(image)["last_feat"], same(image)["last_feat"])
