"""layer_decay_params: learning rates by depth, weight decay as in Detectron2, every trained parameter once."""

import pytest
import torch
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

from maskrcnn_plus.backbones import PlainViT
from maskrcnn_plus.training.layer_decay import layer_decay_params

OPTIONS = {"embed_dim": 16, "depth": 3, "num_heads": 2}


def detector(name="vit_small_patch14_reg4_dinov2", **arguments):
    """A stand-in with the names that count: backbone.net.net.blocks.N, and heads with blocks of their own."""
    torch.manual_seed(0)
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.net = PlainViT(name, options=OPTIONS, **arguments)
    model.backbone.simfp_4 = nn.Sequential(nn.Conv2d(16, 4, 1), nn.GroupNorm(2, 4))
    model.heads = nn.Module()
    model.heads.blocks = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    return model


def settings(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (g["lr"], g.get("weight_decay")) for g in groups for p in g["params"]}


def factor(name, rate, depth=3):
    """The rule of ViTDet, layer by layer."""
    if name.startswith("backbone.net.net.blocks."):
        return rate ** (depth - int(name.split(".")[4]))
    embeddings = ("cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre")
    return rate ** (depth + 1) if name.startswith("backbone.") and name.split(".")[3] in embeddings else 1.0


@pytest.mark.parametrize(
    "name", ["vit_small_patch14_reg4_dinov2", "vit_base_patch16_clip_224", "vit_small_patch16_dinov3"]
)
def test_every_layer_learns_at_its_own_rate(name):
    model = detector(name, final_norm=True)
    found = settings(model, layer_decay_params(model, base_lr=0.1, decay_rate=0.5))
    assert set(found) == {key for key, _ in model.named_parameters()}
    for key, (lr, _) in found.items():
        assert lr == pytest.approx(0.1 * factor(key, 0.5)), key
    assert found["backbone.net.net.norm.weight"][0] == found["heads.blocks.0.weight"][0] == 0.1


def test_without_decay_the_groups_are_those_of_detectron2():
    model = detector()
    overrides = {"pos_embed": {"weight_decay": 0.0, "lr": 0.02}}
    found = layer_decay_params(model, base_lr=0.1, decay_rate=1.0, overrides=overrides)
    assert overrides == {"pos_embed": {"weight_decay": 0.0, "lr": 0.02}}
    expected = get_default_optimizer_params(model, base_lr=0.1, weight_decay_norm=0.0, overrides=overrides)
    assert settings(model, found) == settings(model, expected)
    assert len(found) == len(set(settings(model, found).values()))


def test_frozen_parameters_are_left_out():
    model = detector(freeze_at=2)
    found = settings(model, layer_decay_params(model, base_lr=0.1))
    assert set(found) == {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert "backbone.net.net.blocks.0.norm1.weight" not in found
    # Blocks keep their depth, whichever of them are frozen.
    assert found["backbone.net.net.blocks.1.mlp.fc1.weight"][0] == pytest.approx(0.1 * 0.7**2)


def test_an_optimizer_takes_the_groups():
    model = detector()
    optimizer = torch.optim.AdamW(layer_decay_params(model, base_lr=0.1), lr=0.1, weight_decay=0.05)
    decays = settings(model, optimizer.param_groups)
    assert decays["backbone.net.net.blocks.0.norm1.weight"][1] == 0.0
    assert decays["backbone.net.net.blocks.0.attn.qkv.weight"][1] == 0.05


def test_a_backbone_without_blocks_and_a_rate_out_of_range_are_refused():
    model = detector()
    for rate in (0.0, 1.5, -1.0):
        with pytest.raises(ValueError, match="decay_rate"):
            layer_decay_params(model, base_lr=0.1, decay_rate=rate)
    del model.backbone.net
    with pytest.raises(ValueError, match="no blocks of a ViT"):
        layer_decay_params(model, base_lr=0.1)
