"""The pixels' mean and deviation follow the backbone that a config names, unless it gives them itself."""

import pytest
import torch
from detectron2.config import instantiate
from omegaconf import OmegaConf

from maskrcnn_plus.backbones.timm import pixel_mean, pixel_std
from maskrcnn_plus.build import build
from maskrcnn_plus.config import list_configs, load_config

IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])  # torchvision's and most of timm's
HALF = ([127.5] * 3, [127.5] * 3)  # of the EfficientNet-Lites, by their authors
CAFFE = ([103.53, 116.28, 123.675], [1.0] * 3)  # of Detectron2's model zoo, BGR
RGB = (
    "coco/mask_rcnn_convnext",
    "coco/mask_rcnn_eff",
    "coco/mask_rcnn_mobile",
    "coco/mask_rcnn_swin",
    "coco/mask_rcnn_vitb",
)
ZOO_RGB = ("zoo/torchvision", "zoo/mmdet_mask_rcnn_r50_fpn", "nuclei/mask_rcnn_r50_fpn_torchvision")


def statistics(cfg):
    return [torch.tensor(list(instantiate(cfg.model[key]))) for key in ("pixel_mean", "pixel_std")]


def expected(mean, std):
    return [torch.tensor(mean), torch.tensor(std)]


@pytest.mark.parametrize("name", list_configs())
def test_shipped_configs_keep_their_values_to_the_bit(name):
    known = IMAGENET if name.startswith(RGB + ZOO_RGB) else HALF if name.startswith(("demo", "nuclei")) else CAFFE
    if name == "coco/mask_rcnn_x101_32x8d_fpn_3x":  # trained by its authors with PyTorch, and read as BGR
        known = (CAFFE[0], [57.375, 57.12, 58.395])
    for value, wanted in zip(statistics(load_config(name)), expected(*known), strict=True):
        assert torch.equal(value, wanted)


@pytest.mark.parametrize("name", ["nuclei/mask_rcnn_lite0_fpn", "demo/mask_rcnn_lite0_fpn", "nuclei/mask_rcnn_plus"])
@pytest.mark.parametrize("backbone", ["resnet50", "convnext_tiny.fb_in22k", "vgg16_bn"])
def test_another_backbone_brings_its_own(name, backbone):
    cfg = load_config(name, [f"model.backbone.bottom_up.name={backbone}"])
    for value, wanted in zip(statistics(cfg), expected(*IMAGENET), strict=True):
        assert torch.allclose(value, wanted)


def test_detectron2s_own_instantiate_gives_the_model_that_has_them():
    cfg = load_config(
        "nuclei/mask_rcnn_lite0_fpn",
        ["model.backbone.bottom_up.name=resnet18", "model.backbone.bottom_up.weights=''"],
    )
    model = instantiate(cfg.model)
    assert torch.allclose(model.pixel_mean.flatten(), torch.tensor(IMAGENET[0]))
    assert torch.allclose(model.pixel_std.flatten(), torch.tensor(IMAGENET[1]))


def test_names_changed_in_other_configs_bring_theirs():
    cfg = load_config("coco/mask_rcnn_swin_t_fpn", ["model.backbone.bottom_up.name=tf_efficientnet_lite0"])
    for value, wanted in zip(statistics(cfg), expected(*HALF), strict=True):
        assert torch.equal(value, wanted)


def test_explicit_values_win():
    overrides = ["model.backbone.bottom_up.name=resnet50", "model.pixel_mean=[1,2,3]", "model.pixel_std=[4,5,6.5]"]
    cfg = load_config("nuclei/mask_rcnn_lite0_fpn", overrides)
    assert [value.tolist() for value in statistics(cfg)] == [[1, 2, 3], [4, 5, 6.5]]
    assert OmegaConf.is_list(cfg.model.pixel_mean)


@pytest.mark.parametrize(
    ("channels", "mean"), [(1, [sum(IMAGENET[0]) / 3]), (2, IMAGENET[0][:2]), (4, [*IMAGENET[0], IMAGENET[0][0]])]
)
def test_other_channels_get_what_timm_adapts_the_weights_to(channels, mean):
    overrides = ["model.backbone.bottom_up.name=resnet50", f"model.backbone.bottom_up.in_chans={channels}"]
    value, deviation = statistics(load_config("nuclei/mask_rcnn_lite0_fpn", overrides))
    assert value.tolist() == pytest.approx(mean)
    assert len(deviation) == channels


def test_a_backbone_without_a_name_asks_for_the_values():
    cfg = load_config("nuclei/mask_rcnn_lite0_fpn")
    del cfg.model.backbone.bottom_up.name
    with pytest.raises(ValueError, match=r"model\.pixel_mean.*model\.backbone\.bottom_up\.name"):
        build(cfg, "model.pixel_mean")


@pytest.mark.parametrize("function", [pixel_mean, pixel_std])
def test_an_unknown_network_is_refused(function):
    with pytest.raises(ValueError, match="resnet19"):
        function("resnet19")
