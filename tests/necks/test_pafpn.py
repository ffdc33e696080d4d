"""PAFPN against the paper's formula written out, and the norms of both FPNs."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg, instantiate
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import FPN, Backbone, build_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn

from maskrcnn_plus.config import add_config, detectron2_config
from maskrcnn_plus.necks.pafpn import PAFPN

CHANNELS = {"res2": 4, "res3": 6, "res4": 8, "res5": 10}


class TinyBackbone(Backbone):
    """Strided 3x3 convolutions."""

    def __init__(self):
        super().__init__()
        widths = [3, *CHANNELS.values()]
        self.convs = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 3, stride=4 if i == 0 else 2, padding=1) for i in range(4)
        )

    def forward(self, x):
        features = {}
        for name, conv in zip(CHANNELS, self.convs, strict=True):
            features[name] = x = conv(x).tanh()
        return features

    def output_shape(self):
        return {name: ShapeSpec(channels=c, stride=4 * 2**i) for i, (name, c) in enumerate(CHANNELS.items())}


def build(neck=PAFPN, norm="", top_block=None, in_features=tuple(CHANNELS), out_channels=32, fuse_type="sum", seed=0):
    torch.manual_seed(seed)
    model = neck(TinyBackbone(), in_features, out_channels, norm=norm, top_block=top_block, fuse_type=fuse_type)
    for name, value in model.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            value.normal_(0, 0.3)
        elif "norm" in name and value.is_floating_point():  # weights and variances
            value.uniform_(0.5, 1.5)
    return model


def convolve(state, name, x, stride=1, padding=1):
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=stride, padding=padding)


def reference(model, x, fuse_type="sum"):
    """FPN (Lin et al., 2017) top-down, then Liu et al. (2018) bottom-up, level by level by the formula."""
    state, features = model.state_dict(), model.bottom_up(x)
    p, inner = {}, None
    for i in (5, 4, 3, 2):
        lateral = convolve(state, f"fpn_lateral{i}", features[f"res{i}"], padding=0)
        if inner is not None:
            lateral = lateral + inner.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            lateral = lateral / 2 if fuse_type == "avg" else lateral
        inner = lateral
        p[i] = convolve(state, f"fpn_output{i}", inner)
    n = {2: p[2]}
    for i in (2, 3, 4):
        down = convolve(state, f"pafpn_down{i + 1}", n[i], stride=2).clamp(min=0)
        n[i + 1] = convolve(state, f"pafpn_output{i + 1}", p[i + 1] + down).clamp(min=0)
    n[6] = n[5][:, :, ::2, ::2]
    return {f"p{i}": n[i] for i in sorted(n)}


@pytest.mark.parametrize("fuse_type", ["sum", "avg"])
@pytest.mark.parametrize("size", [(32, 32), (96, 160)])
def test_equals_the_formula(size, fuse_type):
    model = build(top_block=LastLevelMaxPool(), fuse_type=fuse_type).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    outputs, expected = model(x), reference(model, x, fuse_type)
    assert list(outputs) == list(expected)
    for name, shape in model.output_shape().items():
        assert outputs[name].shape == (2, shape.channels, -(-size[0] // shape.stride), -(-size[1] // shape.stride))
        torch.testing.assert_close(outputs[name], expected[name], rtol=1e-12, atol=1e-12)


def test_the_finest_level_and_the_weights_are_those_of_fpn():
    pafpn, fpn = build(top_block=LastLevelMaxPool()), build(FPN, top_block=LastLevelMaxPool(), seed=2)
    result = fpn.load_state_dict(pafpn.state_dict(), strict=False)
    assert not result.missing_keys
    assert sorted(result.unexpected_keys) == sorted(
        f"pafpn_{part}{i}.{kind}" for part in ("down", "output") for i in (3, 4, 5) for kind in ("weight", "bias")
    )
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    assert torch.equal(pafpn(x)["p2"], fpn(x)["p2"])
    assert not torch.allclose(pafpn(x)["p3"], fpn(x)["p3"])
    assert pafpn.output_shape() == fpn.output_shape()
    assert pafpn.size_divisibility == fpn.size_divisibility == 32


@pytest.mark.parametrize("in_feature", ["res5", "p5"])
def test_a_top_block_reads_the_new_p5_or_the_backbone(in_feature):
    block = LastLevelP6P7(CHANNELS["res5"] if in_feature == "res5" else 32, 32, in_feature)
    model = build(top_block=block)
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(4))
    outputs = model(x)
    p6, p7 = block(model.bottom_up(x)["res5"] if in_feature == "res5" else outputs["p5"])
    assert list(outputs) == ["p2", "p3", "p4", "p5", "p6", "p7"]
    assert torch.equal(outputs["p6"], p6)
    assert torch.equal(outputs["p7"], p7)


def test_a_part_of_the_levels():
    model = build(in_features=["res3", "res4"])
    outputs = model(torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(5)))
    assert {name: value.shape[-1] for name, value in outputs.items()} == {"p3": 6, "p4": 3}
    single = build(in_features=["res4"])
    assert not [name for name in single.state_dict() if "pafpn" in name]


@pytest.mark.parametrize("neck", [FPN, PAFPN])
@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("", None),
        ("GN", nn.GroupNorm),
        ("BN", nn.BatchNorm2d),
        ("FrozenBN", FrozenBatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
    ],
)
def test_every_norm_trains_in_one_process(neck, norm, kind):
    model = build(neck, norm, LastLevelMaxPool())
    convs = [m for name, m in model.named_modules() if name.startswith(("fpn_", "pafpn_")) and hasattr(m, "norm")]
    assert len(convs) == (8 if neck is FPN else 14)
    for conv in convs:
        assert type(conv.norm) is (kind or type(None))
        assert (conv.bias is None) == (norm != "")
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(6))
    loss = sum(output.square().sum() for output in model(x).values())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    model.eval()
    single, batch = model(x[:1]), model(x)
    for name, value in batch.items():
        torch.testing.assert_close(value[:1], single[name], rtol=1e-4, atol=1e-4)


def test_the_norm_comes_before_the_relu():
    model = build(norm="BN").double().eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    fpn = FPN.forward(model, x)
    folded = {}
    for stage, part in ((3, "down"), (3, "output")):
        conv = getattr(model, f"pafpn_{part}{stage}")
        scale = conv.norm.weight / (conv.norm.running_var + conv.norm.eps).sqrt()
        folded[part] = (conv.weight * scale[:, None, None, None], conv.norm.bias - conv.norm.running_mean * scale)
    down = F.conv2d(fpn["p2"], *folded["down"], stride=2, padding=1).relu()
    expected = F.conv2d(fpn["p3"] + down, *folded["output"], padding=1).relu()
    torch.testing.assert_close(model(x)["p3"], expected, rtol=1e-10, atol=1e-10)


def test_mask_rcnn_pads_images_of_odd_sizes():
    cfg = detectron2_config("common/models/mask_rcnn_fpn.py").model
    cfg.backbone = build(top_block=LastLevelMaxPool(), out_channels=256)
    cfg.roi_heads.num_classes = 2
    cfg.roi_heads.box_predictor.test_score_thresh = 0.0
    torch.manual_seed(8)
    model = instantiate(cfg).eval()
    image = torch.randint(0, 256, (3, 61, 83), generator=torch.Generator().manual_seed(9)).float()
    with torch.no_grad():
        (result,) = model([{"image": image, "height": 61, "width": 83}])
    assert result["instances"].image_size == (61, 83)
    assert len(result["instances"]) > 0
    assert result["instances"].pred_masks.shape[1:] == (61, 83)


def test_sizes_that_do_not_fit_and_unknown_arguments_say_so():
    with pytest.raises(ValueError, match=r"multiples of 32, got \[1, 3, 33, 64\]"):
        build()(torch.zeros(1, 3, 33, 64))
    with pytest.raises(ValueError, match=r"in_features \['res6'\] .* res2, res3, res4, res5"):
        build(in_features=["res5", "res6"])
    with pytest.raises(ValueError, match='norm \'LayerNrom\' is not known; take "", "GN"'):
        build(norm="LayerNrom")


def test_yacs_builds_it_on_a_resnet_and_on_a_timm_network():
    cfg = get_cfg()
    add_config(cfg)
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.NORM = "GN"
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    cfg.MODEL.TIMM.NAME = "resnet18"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    for name in ("build_resnet_pafpn_backbone", "build_timm_pafpn_backbone"):
        cfg.MODEL.BACKBONE.NAME = name
        backbone = build_backbone(cfg)
        assert isinstance(backbone, PAFPN)
        assert backbone.output_shape()["p6"] == ShapeSpec(channels=64, stride=64)
        assert isinstance(backbone.pafpn_output5.norm, nn.GroupNorm)
    assert type(backbone.bottom_up).__name__ == "TimmBackbone"
