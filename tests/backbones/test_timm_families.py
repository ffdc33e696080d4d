"""TimmBackbone on a small network of every family: timm's features, their sizes, freezing, and Detectron2's FPN."""

from typing import NamedTuple

import pytest
import timm
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone import FPN
from detectron2.structures import ImageList
from torch import nn

from maskrcnn_plus.backbones.timm import TimmBackbone

STRIDE = {"stem": 2, "res2": 4, "res3": 8, "res4": 16, "res5": 32}


class Family(NamedTuple):
    stem: str  # parameter of the first layer
    side_multiple: int = 1  # of the image sides that the network takes
    rounding: str = "up"  # of image side / stride
    is_swin: bool = False
    has_stem_feature: bool = True
    has_batch_norm: bool = True


SWIN = Family("patch_embed.proj.weight", 4, is_swin=True, has_stem_feature=False, has_batch_norm=False)
FAMILIES = {
    "resnet18": Family("conv1.weight"),
    "resnet18d": Family("conv1.0.weight"),
    "resnext50_32x4d": Family("conv1.weight"),
    "regnety_002": Family("stem.conv.weight"),
    "efficientnet_b0": Family("conv_stem.weight"),
    "tf_efficientnet_lite0": Family("conv_stem.weight"),
    "mobilenetv3_small_050": Family("conv_stem.weight"),
    "mobilenetv4_conv_small": Family("conv_stem.weight"),
    "convnext_atto": Family("stem_0.weight", rounding="down", has_stem_feature=False, has_batch_norm=False),
    "convnextv2_atto": Family("stem_0.weight", rounding="down", has_stem_feature=False, has_batch_norm=False),
    "swin_tiny_patch4_window7_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
    "hrnet_w18_small": Family("conv1.weight", 32),
    "hgnetv2_b0": Family("stem.stem1.conv.weight", has_stem_feature=False),
    "fastvit_t8": Family("stem_0.conv_kxk.0.conv.weight", has_stem_feature=False),
}
WITH_STEM = [name for name, family in FAMILIES.items() if family.has_stem_feature]
WITHOUT_STEM = [name for name, family in FAMILIES.items() if not family.has_stem_feature]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_image(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomise_batch_norms(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.75)


def without_drop_path(name):
    """Options with which a training pass is not random: only Swin drops paths by default."""
    return {"drop_path_rate": 0.0} if FAMILIES[name].is_swin else {}


class Pair(NamedTuple):
    """A backbone in evaluation mode and timm's extractor with the same random weights."""

    name: str
    family: Family
    backbone: TimmBackbone
    network: nn.Module

    def timm_features(self, image):
        """timm's features of an image under the names that they have here."""
        names = {stride: feature for feature, stride in STRIDE.items()}
        with torch.no_grad():
            outputs = self.network(image)
        if self.family.is_swin:
            outputs = [output.permute(0, 3, 1, 2) for output in outputs]
        reductions = self.network.feature_info.reduction()
        return {names[stride]: output for stride, output in zip(reductions, outputs, strict=True)}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    """Of every family; tests leave it as it is."""
    name, family = request.param, FAMILIES[request.param]
    torch.manual_seed(0)
    options = {"strict_img_size": False} if family.is_swin else {}
    network = timm.create_model(name, features_only=True, **options).eval()
    randomise_batch_norms(network)
    backbone = TimmBackbone(name).eval()
    backbone.net.load_state_dict(network.state_dict())
    return Pair(name, family, backbone, network)


def test_features_are_exactly_those_of_timm_at_an_odd_size(pair):
    family, backbone = pair.family, pair.backbone
    height, width = (-(-side // family.side_multiple) * family.side_multiple for side in (321, 479))
    image = random_image(1, 3, height, width)
    with torch.no_grad():
        features = backbone(image)
    expected = pair.timm_features(image)
    assert list(features) == list(backbone.output_shape()) == ["res2", "res3", "res4", "res5"]
    for key, feature in features.items():
        shape = backbone.output_shape()[key]
        assert torch.equal(feature, expected[key])
        assert feature.abs().max() > 0
        assert (feature.shape[1], shape.stride) == (shape.channels, STRIDE[key])
        extra = shape.stride - 1 if family.rounding == "up" else 0
        assert tuple(feature.shape[2:]) == ((height + extra) // shape.stride, (width + extra) // shape.stride)


def test_detectron2_fpn_takes_images_of_any_size(pair):
    torch.manual_seed(0)
    fpn = FPN(pair.backbone, ["res2", "res3", "res4", "res5"], 16).eval()
    assert fpn.size_divisibility == 32
    images = ImageList.from_tensors([random_image(3, 97, 131), random_image(3, 64, 141)], fpn.size_divisibility)
    assert tuple(images.tensor.shape) == (2, 3, 128, 160)
    with torch.no_grad():
        bottom_up, pyramid = fpn.bottom_up(images.tensor), fpn(images.tensor)
    for level, stride in enumerate((4, 8, 16, 32), start=2):
        assert tuple(bottom_up[f"res{level}"].shape[2:]) == (128 // stride, 160 // stride)
        assert tuple(pyramid[f"p{level}"].shape) == (2, 16, 128 // stride, 160 // stride)
        assert pyramid[f"p{level}"].isfinite().all()


def test_gradients_reach_the_stem_and_every_other_parameter(pair):
    loss = sum(feature.square().mean() for feature in pair.backbone(random_image(2, 3, 64, 96)).values())
    parameters = dict(pair.backbone.net.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(loss, parameters.values(), allow_unused=True), strict=True))
    without = [key for key, gradient in gradients.items() if gradient is None]
    assert not without  # torch's DistributedDataParallel would stop at one
    assert gradients[pair.family.stem].abs().sum() > 0


def test_frozen_batch_norm_in_training_equals_timm_in_evaluation(pair):
    backbone = TimmBackbone(pair.name, norm="FrozenBN", options=without_drop_path(pair.name))
    missing, unexpected = backbone.net.load_state_dict(pair.network.state_dict(), strict=False)
    assert not missing
    assert all(key.endswith("num_batches_tracked") for key in unexpected)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert any(isinstance(m, FrozenBatchNorm2d) for m in backbone.modules()) == pair.family.has_batch_norm
    image = random_image(2, 3, 64, 96)
    with torch.no_grad():
        features = backbone.train()(image)
    expected = pair.timm_features(image)
    assert all(torch.equal(feature, expected[key]) for key, feature in features.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_training_leaves_the_frozen_stages_alone(name):
    torch.manual_seed(0)
    backbone = TimmBackbone(name, freeze_at=2, options=without_drop_path(name)).train()
    assert not backbone.net.get_parameter(FAMILIES[name].stem).requires_grad
    image = random_image(2, 3, 64, 96)
    with torch.no_grad():
        before = backbone.eval()(image)
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    sum(feature.square().mean() for feature in backbone.train()(image).values()).backward()
    optimizer.step()
    with torch.no_grad():
        after = backbone.eval()(image)
    assert torch.equal(after["res2"], before["res2"])
    assert not torch.equal(after["res3"], before["res3"])


@pytest.mark.parametrize("name", WITH_STEM)
def test_the_stem_alone_can_be_frozen(name):
    backbone = TimmBackbone(name, out_features=("stem", "res2"), freeze_at=1)
    frozen = {key for key, parameter in backbone.net.named_parameters() if not parameter.requires_grad}
    assert FAMILIES[name].stem in frozen
    features = backbone(random_image(2, 3, 64, 96))
    assert not features["stem"].requires_grad
    assert features["res2"].requires_grad


@pytest.mark.parametrize("name", WITHOUT_STEM)
def test_a_network_without_a_feature_at_stride_2_has_no_stem_to_freeze(name):
    with pytest.raises(ValueError, match=r"freeze_at: .* no feature at stride 2"):
        TimmBackbone(name, freeze_at=1)


@pytest.mark.parametrize(
    ("name", "size", "multiple"),
    [
        ("swin_tiny_patch4_window7_224", (322, 480), 4),
        ("swinv2_tiny_window8_256", (320, 479), 4),
        ("hrnet_w18_small", (321, 479), 32),
        ("hrnet_w18_small", (80, 80), 32),
    ],
)
def test_a_size_that_the_network_cannot_take_is_refused(name, size, multiple):
    backbone = TimmBackbone(name)
    with pytest.raises(ValueError, match=rf"multiples of {multiple}, got {size[0]} x {size[1]}: pad"):
        backbone(random_image(1, 3, *size))


def test_padding_is_what_the_network_needs_inside():
    hrnet, resnet = (TimmBackbone(name, out_features=("res2", "res3")) for name in ("hrnet_w18_small", "resnet18"))
    assert hrnet.size_divisibility == 32  # it has a branch of stride 32, fused into all outputs
    assert resnet.size_divisibility == 8
    features = hrnet.eval()(random_image(1, 3, 32, 96))
    assert {key: tuple(feature.shape[2:]) for key, feature in features.items()} == {"res2": (8, 24), "res3": (4, 12)}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("maxvit_nano_rw_256", {}, r"any size.*must be divisible by window.*choose another network"),
        ("test_vit", {}, r"no feature at stride 4 .*PlainViT and SimpleFeaturePyramid"),
        ("swin_tiny_patch4_window7_224", {"strict_img_size": True}, r"any size.*doesn't match model \(224\)"),
    ],
)
def test_a_network_for_a_single_image_size_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(name, options=options)


@pytest.mark.parametrize(("name", "window"), [("swin_tiny_patch4_window7_224", 7), ("swinv2_tiny_window8_256", 8)])
def test_windows_follow_the_image(name, window):
    """The masks of shifted windows made for each image are those that timm makes in advance for one size."""
    torch.manual_seed(0)
    small = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": window}
    backbone = TimmBackbone(name, options={**small, "always_partition": True}).eval()
    for height, width in ((96, 160), (352, 288)):
        fixed = timm.create_model(name, features_only=True, img_size=(height, width), always_partition=True, **small)
        state = {key: value for key, value in backbone.net.state_dict().items() if not key.endswith("attn_mask")}
        missing, unexpected = fixed.load_state_dict(state, strict=False)
        assert not unexpected
        assert all(key.endswith("attn_mask") for key in missing)
        image = random_image(2, 3, height, width)
        with torch.no_grad():
            for feature, expected in zip(backbone(image).values(), fixed.eval()(image), strict=True):
                torch.testing.assert_close(feature, expected.permute(0, 3, 1, 2))


def test_always_partition_shifts_the_windows_of_the_coarsest_stage():
    image = random_image(1, 3, 512, 512)  # 16 x 16 positions at stride 32
    features = []
    for always_partition in (False, True):
        torch.manual_seed(0)
        options = {"embed_dim": 16, "depths": (1, 1, 1, 2), "num_heads": (1, 2, 4, 8)}
        options["always_partition"] = always_partition
        backbone = TimmBackbone("swin_tiny_patch4_window7_224", options=options).eval()
        with torch.no_grad():
            features.append(backbone(image))
    assert torch.equal(features[0]["res4"], features[1]["res4"])
    assert not torch.allclose(features[0]["res5"], features[1]["res5"])


def test_fastvit_trained_with_frozen_batch_norms_can_be_fused_for_prediction():
    torch.manual_seed(0)
    network = timm.create_model("fastvit_t8", features_only=True)
    randomise_batch_norms(network)
    trained = TimmBackbone("fastvit_t8", norm="FrozenBN").eval()
    trained.net.load_state_dict(network.state_dict(), strict=False)
    backbone = TimmBackbone("fastvit_t8").eval()
    missing, unexpected = backbone.load_state_dict(trained.state_dict(), strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    parts = len(list(backbone.modules()))
    backbone.net = timm.utils.reparameterize_model(backbone.net)
    assert len(list(backbone.modules())) < parts / 2
    image = random_image(2, 3, 97, 131)
    with torch.no_grad():
        features, expected = backbone(image), trained(image)
    for key, feature in features.items():
        scale = expected[key].abs().max().item()
        torch.testing.assert_close(feature, expected[key], rtol=0, atol=1e-4 * scale)
