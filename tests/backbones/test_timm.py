"""TimmBackbone: features of timm under Detectron2's names, freezing, and its place in Detectron2."""

import pytest
import timm
import torch
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import FPN
from torch import nn

from maskrcnn_plus.backbones.freezing import FrozenBatchNormAct2d
from maskrcnn_plus.backbones.timm import TimmBackbone, pixel_statistics
from maskrcnn_plus.config import add_config

TINY_SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_image(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prefixes(names):
    return {".".join(name.split(".")[: 2 if name.startswith("blocks.") else 1]) for name in names}


def test_features_of_resnet_are_the_outputs_of_its_stages():
    backbone = TimmBackbone("resnet18", out_features=("res4", "stem", "res2")).eval()
    classifier = timm.create_model("resnet18").eval()
    missing = classifier.load_state_dict(backbone.net.state_dict(), strict=False).missing_keys
    assert prefixes(missing) == {"layer4", "fc"}
    image = random_image(1, 3, 64, 96)
    with torch.no_grad():
        stem = classifier.act1(classifier.bn1(classifier.conv1(image)))
        res2 = classifier.layer1(classifier.maxpool(stem))
        expected = {"stem": stem, "res2": res2, "res4": classifier.layer3(classifier.layer2(res2))}
        features = backbone(image)
    assert list(features) == list(expected)
    assert all(torch.equal(features[key], expected[key]) for key in expected)


def test_stem_and_res1_are_the_same_feature():
    backbone = TimmBackbone("mobilenetv3_small_050", out_features=["res1", "stem"]).eval()
    features = backbone(random_image(1, 3, 32, 32))
    assert torch.equal(features["res1"], features["stem"])
    assert backbone.output_shape()["stem"].stride == backbone.size_divisibility == 2


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto"])
def test_only_the_stages_needed_are_built(name):
    backbone = TimmBackbone(name, out_features=("res2", "res3"))
    backbone(random_image(2, 3, 64, 64))["res3"].sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_every_parameter_is_trained_by_default():
    backbone = TimmBackbone("tf_efficientnet_lite0")
    sum(feature.square().mean() for feature in backbone(random_image(2, 3, 64, 64)).values()).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    assert backbone.net.conv_stem.weight.grad.abs().sum() > 0


FROZEN = [
    ("resnet18", 1, {"conv1", "bn1"}),
    ("resnet18", 2, {"conv1", "bn1", "layer1"}),
    ("resnet18", 4, {"conv1", "bn1", "layer1", "layer2", "layer3"}),
    ("tf_efficientnet_lite0", 2, {"conv_stem", "bn1", "blocks.0", "blocks.1"}),
    ("mobilenetv3_small_050", 1, {"conv_stem", "bn1"}),
    ("mobilenetv3_small_050", 3, {"conv_stem", "bn1", "blocks.0", "blocks.1"}),
    ("convnext_atto", 2, {"stem_0", "stem_1", "stages_0"}),
]


@pytest.mark.parametrize(("name", "freeze_at", "frozen"), FROZEN)
def test_a_frozen_part_is_left_alone_by_training(name, freeze_at, frozen):
    torch.manual_seed(0)
    backbone = TimmBackbone(name, freeze_at=freeze_at).train()
    before = {key: value.clone() for key, value in backbone.net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    sum(feature.square().mean() for feature in backbone(random_image(2, 3, 64, 64)).values()).backward()
    optimizer.step()
    after = backbone.net.state_dict()
    unchanged = {key for key in before if torch.equal(before[key], after[key])}
    in_frozen_part = {key for key in before if prefixes([key]) <= frozen}
    assert in_frozen_part <= unchanged
    assert all(p.requires_grad != (key in in_frozen_part) for key, p in backbone.net.named_parameters())
    running = {key for key in before if key.endswith("running_mean")}
    assert unchanged & running == in_frozen_part & running


def test_a_freeze_level_beyond_the_last_feature_freezes_everything():
    backbone = TimmBackbone("resnet18", out_features=("res2", "res3"), freeze_at=5)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())


def test_freezing_below_the_first_feature_leaves_the_outputs_as_asked():
    backbone = TimmBackbone("resnet18", out_features=("res4",), freeze_at=1).eval()
    features = backbone(random_image(1, 3, 64, 64))
    assert {key: tuple(value.shape) for key, value in features.items()} == {"res4": (1, 256, 4, 4)}


def test_frozen_batch_norm_keeps_epsilon_activation_and_precision():
    backbone = TimmBackbone("tf_efficientnet_lite0", norm="FrozenBN")
    stem = backbone.net.bn1
    assert isinstance(stem, FrozenBatchNormAct2d)
    assert stem.eps == timm.create_model("tf_efficientnet_lite0").bn1.eps != FrozenBatchNorm2d(1).eps
    stem.bias.fill_(100.0)
    image = random_image(1, 32, 4, 4).bfloat16()
    for x in (image, image.clone().requires_grad_()):
        output = stem(x)  # mixed precision: its buffers stay float32
        assert output.dtype == torch.bfloat16
        assert (output == 6.0).all()  # ReLU6


class OtherBatchNorm(nn.BatchNorm2d):
    """A batch norm that may compute anything."""


@pytest.mark.parametrize("frozen", [{"norm": "FrozenBN"}, {"freeze_at": 1}])
def test_a_norm_that_cannot_be_frozen_is_refused(frozen):
    with pytest.raises(ValueError, match=r"'bn1' of type OtherBatchNorm .* cannot be frozen"):
        TimmBackbone("resnet18", options={"norm_layer": OtherBatchNorm}, **frozen)


@pytest.mark.parametrize("in_chans", [1, 2, 5])
def test_other_numbers_of_channels(in_chans):
    backbone = TimmBackbone("mobilenetv3_small_050", in_chans=in_chans, freeze_at=2).eval()
    assert backbone(random_image(1, in_chans, 32, 32))["res5"].shape[2:] == (1, 1)
    with pytest.raises(ValueError, match=rf"\[N, {in_chans}, H, W\], got \[1, 3, 32, 32\]"):
        backbone(random_image(1, 3, 32, 32))
    with pytest.raises(ValueError, match="got"):
        backbone(random_image(in_chans, 32, 32))


def test_an_empty_batch_has_empty_features():
    features = TimmBackbone("resnet18").eval()(torch.zeros(0, 3, 64, 64))
    assert [tuple(feature.shape) for feature in features.values()] == [
        (0, 64, 16, 16),
        (0, 128, 8, 8),
        (0, 256, 4, 4),
        (0, 512, 2, 2),
    ]


def test_options_reach_timm():
    backbone = TimmBackbone("convnext_atto", options={"drop_path_rate": 0.5})
    rates = [module.drop_prob for module in backbone.modules() if hasattr(module, "drop_prob")]
    assert max(rates) == pytest.approx(0.5)


def test_builds_inside_detectron2_fpn():
    features = ["res2", "res3", "res4", "res5"]
    fpn = FPN(TimmBackbone("mobilenetv3_small_050"), features, 16, norm="BN").eval()
    assert fpn.size_divisibility == 32
    outputs = fpn(random_image(1, 3, 64, 96))
    assert {key: tuple(value.shape[2:]) for key, value in outputs.items()} == {
        "p2": (16, 24),
        "p3": (8, 12),
        "p4": (4, 6),
        "p5": (2, 3),
    }


def test_builds_from_yacs_by_name():
    cfg = get_cfg()
    add_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "TimmBackbone"
    cfg.merge_from_list(["MODEL.TIMM.NAME", "convnext_atto", "MODEL.TIMM.OUT_FEATURES", ["res3", "res4"]])
    cfg.MODEL.TIMM.OPTIONS.drop_path_rate = 0.25
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0], [1.0]
    backbone = build_backbone(cfg)
    assert isinstance(backbone, TimmBackbone)
    assert backbone.in_chans == 1
    assert list(backbone.output_shape()) == ["res3", "res4"]
    # FREEZE_AT is 2 in Detectron2's defaults
    assert prefixes(k for k, p in backbone.net.named_parameters() if not p.requires_grad) == {
        "stem_0",
        "stem_1",
        "stages_0",
    }
    rates = [module.drop_prob for module in backbone.modules() if hasattr(module, "drop_prob")]
    assert 0.1 < max(rates) < 0.25  # it grows with depth and reaches 0.25 in the stage that is not built


def test_builds_from_a_lazy_config():
    config = LazyCall(TimmBackbone)(
        name="swin_tiny_patch4_window7_224", out_features=["res2", "res3"], options=dict(TINY_SWIN, depths=[1, 1, 1, 1])
    )
    backbone = instantiate(config).eval()
    assert [shape.channels for shape in backbone.output_shape().values()] == [16, 32]


def test_pixel_statistics_are_in_0_to_255():
    mean, std = pixel_statistics("resnet18")
    assert mean == pytest.approx([123.675, 116.28, 103.53])  # the ImageNet statistics of torchvision times 255
    assert std == pytest.approx([58.395, 57.12, 57.375])
    assert pixel_statistics("tf_efficientnet_lite0") == ([127.5] * 3, [127.5] * 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet81"}, "no model named 'resnet81': did you mean .*resnet18"),
        ({"name": ""}, "no model named ''"),
        ({"name": "resnet18.no_such_tag"}, "no_such_tag"),
        ({"out_features": ("res2", "res6")}, "out_features must be"),
        ({"out_features": ()}, "out_features must be"),
        ({"out_features": "res2"}, "out_features must be"),
        ({"name": "convnext_atto", "out_features": ("stem",)}, r"stride 2 \(stem\); it has strides 4 \(res2\)"),
        ({"name": "convnext_atto", "freeze_at": 1}, "freeze_at: .* no feature at stride 2"),
        ({"name": "vit_tiny_patch16_224"}, r"no feature at stride 4 .*it has strides 16 \(res4\); .*PlainViT"),
        ({"name": "vit_tiny_patch16_224", "out_features": ("res4",)}, "does not take images of any size.*PlainViT"),
        (
            {"name": "legacy_xception"},
            r"feature maps of \[\(39, 23\).*for an image of 160 x 96, not image size / stride",
        ),
        ({"name": "levit_128s"}, r"no feature at stride 4 \(res2\); it has strides 16 \(res4\), 32 \(res5\), 64$"),
        ({"freeze_at": 6}, "freeze_at must be"),
        ({"norm": "GN"}, "norm must be"),
        ({"options": {"pretrained": True}}, "must not contain pretrained"),
        ({"options": {"no_such_option": 1}}, "cannot build 'resnet18'.*no_such_option"),
        ({"weights": "package"}, "no package carries weights of timm model 'resnet18'"),
    ],
)
def test_malformed_arguments_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(**{"name": "resnet18", **arguments})


def test_pixel_statistics_of_an_unknown_model():
    with pytest.raises(ValueError, match="did you mean"):
        pixel_statistics("resnet19")
    with pytest.raises(ValueError, match="no_such_tag"):
        pixel_statistics("resnet18.no_such_tag")
