"""Names, refusals and class names of MMDetection's files; the numbers are in test_mmdet_parity.py."""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import maskrcnn_resnet50_fpn

from maskrcnn_plus.backbones import TimmBackbone
from maskrcnn_plus.checkpoints import mmdet
from maskrcnn_plus.config import get_config
from maskrcnn_plus.weights.conversion import WeightsError, WeightsFile

R50 = "zoo/mmdet_mask_rcnn_r50_fpn"


def build_meta(**changes) -> nn.Module:
    """The shipped model without memory; `changes` set keys of its config, "__" for a dot."""
    cfg = get_config(R50)
    for key, value in changes.items():
        node, *path = cfg.model, *key.split("__")
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value
    with torch.device("meta"):
        return instantiate(cfg.model)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_meta()


def names_of(converted) -> dict[str, str]:
    return {item.sources[0]: target for target, item in converted.items()}


def detector(**tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    """A few tensors of MMDetection 2, of three classes; `tensors` replace some, "__" for a dot."""
    content = {
        "backbone.conv1.weight": torch.zeros(64, 3, 7, 7),
        "roi_head.bbox_head.fc_cls.weight": torch.zeros(4, 8),
        "roi_head.bbox_head.fc_cls.bias": torch.zeros(4),
        "roi_head.bbox_head.fc_reg.bias": torch.zeros(12),
        "roi_head.mask_head.conv_logits.bias": torch.zeros(3),
    }
    return content | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


def test_each_kind_of_tensor_goes_to_its_place(model):
    places = {
        "backbone.conv1.weight": "backbone.bottom_up.stem.conv1.weight",
        "backbone.bn1.running_var": "backbone.bottom_up.stem.conv1.norm.running_var",
        "backbone.layer1.0.conv1.weight": "backbone.bottom_up.res2.0.conv1.weight",
        "backbone.layer3.5.bn2.bias": "backbone.bottom_up.res4.5.conv2.norm.bias",
        "backbone.layer4.0.downsample.0.weight": "backbone.bottom_up.res5.0.shortcut.weight",
        "backbone.layer4.0.downsample.1.running_mean": "backbone.bottom_up.res5.0.shortcut.norm.running_mean",
        "neck.lateral_convs.0.conv.weight": "backbone.fpn_lateral2.weight",
        "neck.fpn_convs.3.conv.bias": "backbone.fpn_output5.bias",
        "rpn_head.rpn_conv.weight": "proposal_generator.rpn_head.conv.weight",
        "rpn_head.rpn_cls.bias": "proposal_generator.rpn_head.objectness_logits.bias",
        "rpn_head.rpn_reg.weight": "proposal_generator.rpn_head.anchor_deltas.weight",
        "roi_head.bbox_head.shared_fcs.0.weight": "roi_heads.box_head.fc1.weight",
        "roi_head.bbox_head.fc_cls.weight": "roi_heads.box_predictor.cls_score.weight",
        "roi_head.bbox_head.fc_reg.bias": "roi_heads.box_predictor.bbox_pred.bias",
        "roi_head.mask_head.convs.3.conv.weight": "roi_heads.mask_head.mask_fcn4.weight",
        "roi_head.mask_head.upsample.bias": "roi_heads.mask_head.deconv.bias",
        "roi_head.mask_head.conv_logits.weight": "roi_heads.mask_head.predictor.weight",
    }
    tensors = {name: torch.full((1,), float(k)) for k, name in enumerate(places)}
    converted = mmdet.convert(WeightsFile("x.pth", tensors), model)
    assert names_of(converted) == places
    assert all(item.tensor is tensors[item.sources[0]] and item.how == "" for item in converted.values())


def test_convolutional_heads_with_norms():
    model = build_meta(
        backbone__norm="GN",
        proposal_generator__head__conv_dims=[-1, -1],
        roi_heads__box_head__conv_dims=[256, 256],
        roi_heads__box_head__fc_dims=[1024],
        roi_heads__box_head__conv_norm="GN",
        roi_heads__mask_head__conv_norm="BN",
        backbone__bottom_up__stages__norm="GN",
        backbone__bottom_up__freeze_at=0,
    )
    places = {
        "backbone.layer2.1.gn3.weight": "backbone.bottom_up.res3.1.conv3.norm.weight",
        "neck.lateral_convs.1.gn.weight": "backbone.fpn_lateral3.norm.weight",
        "neck.fpn_convs.0.conv.weight": "backbone.fpn_output2.weight",
        "rpn_head.rpn_conv.1.conv.weight": "proposal_generator.rpn_head.conv.conv1.weight",
        "roi_head.bbox_head.shared_convs.1.conv.weight": "roi_heads.box_head.conv2.weight",
        "roi_head.bbox_head.shared_convs.0.gn.bias": "roi_heads.box_head.conv1.norm.bias",
        "roi_head.bbox_head.shared_fcs.0.bias": "roi_heads.box_head.fc1.bias",
        "roi_head.mask_head.convs.0.bn.running_var": "roi_heads.mask_head.mask_fcn1.norm.running_var",
    }
    tensors = {name: torch.zeros(1) for name in places}
    assert names_of(mmdet.convert(WeightsFile("x.pth", tensors), model)) == places


def test_what_the_model_has_no_place_for_is_left_over(model):
    unknown = [
        "backbone.bn1.num_batches_tracked",  # of a frozen batch norm
        "backbone.patch_embed.projection.weight",
        "ema_backbone_conv1_weight",
        "neck.fpn_convs.4.conv.weight",
        "neck.pafpn_convs.0.conv.weight",
        "rpn_head.rpn_conv.0.conv.weight",  # of two convolutions, where the model has one
        "roi_head.bbox_head.0.fc_cls.weight",
        "roi_head.bbox_head.cls_fcs.0.weight",
        "roi_head.mask_head.1.convs.0.conv.weight",
        "roi_head.mask_head.convs.9.conv.weight",
        "roi_head.semantic_head.convs.0.conv.weight",
        "bbox_head.retina_cls.weight",
        "data_preprocessor.mean",
        "layer1",
    ]
    assert mmdet.convert(WeightsFile("x.pth", dict.fromkeys(unknown, torch.zeros(1))), model) == {}
    assert mmdet.convert(WeightsFile("x.pth", {}), model) == {}


def test_recognises_its_own_files_only(model):
    for name in ("neck.fpn_convs.0.conv.weight", "backbone.conv1.weight", "roi_heads.box_head.fc1.weight"):
        assert not mmdet.matches([name])
    assert not mmdet.matches([])
    assert not mmdet.matches(model.state_dict())
    with torch.device("meta"):
        assert not mmdet.matches(maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict())
    assert mmdet.matches(detector())
    assert mmdet.matches(["backbone.conv1.weight", "neck.lateral_convs.0.conv.weight"])


@pytest.fixture(scope="module")
def body() -> nn.Module:
    """A residual network with the names and the arithmetic of MMDetection's of style "pytorch"."""
    torch.manual_seed(0)
    network = resnet18(weights=None).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


@pytest.mark.parametrize("kind", ["detectron2", "timm"])
def test_residual_network_computes_the_same_in_both_kinds_of_backbone(kind: str, body: nn.Module):
    features = ["res2", "res3", "res4", "res5"]
    if kind == "timm":
        bottom_up = TimmBackbone("resnet18", out_features=features)
    else:
        stages = ResNet.make_default_stages(18, block_class=BasicBlock, norm="FrozenBN")
        bottom_up = ResNet(BasicStem(norm="FrozenBN"), stages, out_features=features)
    model = nn.Module()
    model.backbone = FPN(bottom_up, features, 8, top_block=LastLevelMaxPool())
    model.eval()
    tensors = {f"backbone.{name}": tensor for name, tensor in body.state_dict().items()}
    converted = mmdet.convert(WeightsFile("x.pth", tensors), model)
    missing = model.load_state_dict({name: item.tensor for name, item in converted.items()}, strict=False).missing_keys
    assert all(name.startswith("backbone.fpn_") for name in missing)
    left = set(tensors) - {source for item in converted.values() for source in item.sources}
    assert {name for name in left if not name.endswith("num_batches_tracked")} == {
        "backbone.fc.weight",
        "backbone.fc.bias",
    }
    image = torch.randn(1, 3, 64, 96)
    x = body.maxpool(body.relu(body.bn1(body.conv1(image))))
    with torch.no_grad():
        outputs = bottom_up(image)
        for name, stage in zip(features, (body.layer1, body.layer2, body.layer3, body.layer4), strict=True):
            x = stage(x)
            torch.testing.assert_close(outputs[name], x, rtol=1e-5, atol=1e-5)


def test_model_without_a_pyramid_takes_the_last_stage_into_its_heads():
    with torch.device("meta"):
        stages = ResNet.make_default_stages(50)
        model = nn.Module()
        model.backbone = ResNet(BasicStem(), stages[:3], out_features=["res4"])
        model.roi_heads = nn.Module()
        model.roi_heads.res5 = nn.Sequential(*stages[3])
    assert model.backbone.output_shape()["res4"] == ShapeSpec(channels=1024, stride=16)
    places = {
        "backbone.layer1.0.conv1.weight": "backbone.res2.0.conv1.weight",
        "backbone.bn1.weight": "backbone.stem.conv1.norm.weight",
        "roi_head.shared_head.layer4.2.bn3.weight": "roi_heads.res5.2.conv3.norm.weight",
        "roi_head.shared_head.layer4.0.downsample.0.weight": "roi_heads.res5.0.shortcut.weight",
    }
    tensors = dict.fromkeys([*places, "neck.lateral_convs.0.conv.weight"], torch.zeros(1))
    assert names_of(mmdet.convert(WeightsFile("x.pth", tensors), model)) == places


@pytest.mark.parametrize(
    ("tensors", "meta", "reason"),
    [
        (detector(bbox_head__fc_cls__weight=torch.zeros(4, 8)), {}, "not under roi_head"),
        (detector(mask_head__conv_logits__weight=torch.zeros(4, 8, 1, 1)), {}, "not under roi_head"),
        (detector(roi_head__bbox_head__fc_reg__bias=torch.zeros(16)), {}, "4 classes have 16 box deltas"),
        (detector(roi_head__mask_head__conv_logits__bias=torch.zeros(4)), {}, "4 classes have as many masks"),
        (detector(), {"config": "bbox_coder=dict(type='LegacyDeltaXYWHBBoxCoder')"}, "legacy box coder"),
        (detector(), {"cfg": "anchor_generator=dict(type='LegacyAnchorGenerator')"}, "legacy box coder"),
    ],
)
def test_conventions_of_version_1_are_refused(model, tensors, meta, reason):
    file = WeightsFile("old.pth", tensors, {"meta": {"mmdet_version": "1.0rc1+abc", **meta}})
    assert mmdet.matches(file.tensors)
    with pytest.raises(WeightsError, match=rf"^old\.pth: a model of MMDetection 1\.x \(1\.0rc1\+abc\): .*{reason}"):
        mmdet.convert(file, model)


@pytest.mark.parametrize("meta", [None, {}, {"mmdet_version": "3.3.0"}, {"mmdet_version": None}, "text"])
def test_layout_of_version_2_needs_no_metadata(model, meta):
    converted = mmdet.convert(WeightsFile("x.pth", detector(), {"meta": meta}), model)
    assert len(converted) == 5
    assert all(item.how == "" for item in converted.values())


def test_class_agnostic_heads_are_not_taken_for_version_1(model):
    tensors = detector(
        roi_head__bbox_head__fc_reg__bias=torch.zeros(4), roi_head__mask_head__conv_logits__bias=torch.zeros(1)
    )
    assert len(mmdet.convert(WeightsFile("x.pth", tensors), model)) == 5


def test_layout_of_version_2_with_the_stamp_of_version_1_is_taken_and_reported(model):
    # The first files of the zoo of 2.0 are older than its release.
    converted = mmdet.convert(WeightsFile("x.pth", detector(), {"meta": {"mmdet_version": "1.1.0+fa1a"}}), model)
    reported = {name for name, item in converted.items() if "1.1.0+fa1a" in item.how}
    assert reported == {name for name in converted if "box_predictor" in name}
    assert len(reported) == 3


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"meta": {"dataset_meta": {"classes": ("cat", "dog"), "palette": []}}}, ["cat", "dog"]),
        ({"meta": {"dataset_meta": {"CLASSES": ["cat", "dog"]}}}, ["cat", "dog"]),
        ({"meta": {"CLASSES": ("cat", "dog")}}, ["cat", "dog"]),
        ({"meta": {"CLASSES": "cat"}}, ["cat"]),
        ({"meta": {"dataset_meta": {"classes": []}}}, None),
        ({"meta": {"CLASSES": (1, 2)}}, None),
        ({"meta": {"CLASSES": None, "dataset_meta": None}}, None),
        ({"meta": None}, None),
        ({}, None),
    ],
)
def test_class_names(metadata, expected):
    assert mmdet.class_names(WeightsFile("x.pth", {}, metadata)) == expected
