"""Names with wrappers and prefixes: every format is recognised and converted as if it had none."""

import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import torchvision
from detectron2.config import instantiate
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock
from torch import nn

from maskrcnn_plus.backbones import TimmBackbone
from maskrcnn_plus.checkpoints import WeightsError, load_weights
from maskrcnn_plus.checkpoints.load import _convert, _strip_prefix
from maskrcnn_plus.config import get_config, skip_pretrained
from maskrcnn_plus.weights.conversion import WeightsFile
from maskrcnn_plus.weights.files import read_weights
from maskrcnn_plus.weights.prefixes import strip_wrappers


def shipped(name):
    """A model of a shipped config, without memory for its numbers."""
    cfg = get_config(name)
    skip_pretrained(cfg)
    with torch.device("meta"):
        return instantiate(cfg.model)


def mmdetection():
    with torch.device("meta"):
        body = torchvision.models.resnet50(weights=None).state_dict()
    names = [f"backbone.{name}" for name in body if not name.startswith("fc.")]
    modules = [f"neck.{kind}_convs.{level}.conv" for kind in ("lateral", "fpn") for level in range(4)]
    modules += [f"rpn_head.rpn_{part}" for part in ("conv", "cls", "reg")]
    modules += [f"roi_head.bbox_head.{part}" for part in ("shared_fcs.0", "shared_fcs.1", "fc_cls", "fc_reg")]
    modules += [
        f"roi_head.mask_head.{part}" for part in ("convs.0.conv", "convs.1.conv", "convs.2.conv", "convs.3.conv")
    ]
    modules += ["roi_head.mask_head.upsample", "roi_head.mask_head.conv_logits"]
    names += [f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")]
    return {
        name: torch.empty(81 if "fc_cls" in name else 320 if "fc_reg" in name else 80, device="meta") for name in names
    }


def torchvision_detector():
    with torch.device("meta"):
        build = torchvision.models.detection.maskrcnn_resnet50_fpn
        return build(weights=None, weights_backbone=None).state_dict()


def classifier():
    with torch.device("meta"):
        return torchvision.models.resnet50(weights=None).state_dict()


def timm_classifier():
    import timm

    with torch.device("meta"):
        return timm.create_model("tf_efficientnet_lite0").state_dict()


def timm_backbone():
    with torch.device("meta"):
        return TimmBackbone("tf_efficientnet_lite0", out_features=["res2", "res3", "res4", "res5"])


FORMATS = {
    "ours": lambda: (model := shipped("zoo/detectron2_mask_rcnn_r50_fpn"), model.state_dict()),
    "part of ours": lambda: (
        model := shipped("zoo/detectron2_mask_rcnn_r50_fpn"),
        model.backbone.bottom_up.state_dict(),
    ),
    "torchvision": lambda: (shipped("zoo/torchvision_mask_rcnn_r50_fpn"), torchvision_detector()),
    "mmdetection": lambda: (shipped("zoo/mmdet_mask_rcnn_r50_fpn"), mmdetection()),
    "classification": lambda: (shipped("zoo/detectron2_mask_rcnn_r50_fpn"), classifier()),
    "timm": lambda: (timm_backbone(), timm_classifier()),
}
PREFIXES = {
    "none": "{}",
    "DistributedDataParallel": "module.{}",
    "torch.compile": "_orig_mod.{}",
    "Lightning": "model.{}",
    "nested": "student.net.detector.{}",
    "compiled in Lightning": "model._orig_mod.module.{}",
    "both ways round": "module.model._orig_mod.{}",
}


@pytest.fixture(scope="module", params=FORMATS)
def known(request):
    model, tensors = FORMATS[request.param]()
    return model, tensors, _convert(WeightsFile("x.pth", tensors), model)


def convert(names, tensors, model):
    """What becomes of tensors with these names in a file."""
    clean = strip_wrappers(names)
    renamed = {clean[name]: tensor for name, tensor in zip(names, tensors.values(), strict=True)}
    others = {"criterion.weight": torch.empty(80, device="meta"), "metric.total": torch.empty(1, device="meta")}
    file, left_over, prefix = _strip_prefix(WeightsFile("x.pth", renamed | others), model)
    kind, converted = _convert(file, model)
    return kind, converted, left_over, prefix


@pytest.mark.parametrize("form", PREFIXES)
def test_every_format_is_recognised_below_any_prefix(known, form):
    model, tensors, (kind, expected) = known
    found, converted, left_over, prefix = convert([PREFIXES[form].format(name) for name in tensors], tensors, model)
    assert found is kind
    assert len(expected) > 50
    assert {name: item.sources for name, item in converted.items()} == {n: item.sources for n, item in expected.items()}
    assert all(converted[name].tensor.shape == item.tensor.shape for name, item in expected.items())
    if prefix:
        assert left_over == ["criterion.weight", "metric.total"]


def test_wrappers_within_names_are_taken_out(known):
    model, tensors, (kind, expected) = known
    names = [f"student.{first}._orig_mod.{rest}" for first, _, rest in (name.partition(".") for name in tensors)]
    found, converted, _, _ = convert(names, tensors, model)
    assert found is kind
    assert converted.keys() == expected.keys()


def test_names_that_would_become_one_stay_as_they_are():
    names = ["module.a", "a"]
    assert strip_wrappers(names) == {"module.a": "module.a", "a": "a"}


def resnet():
    torch.manual_seed(0)
    stage = ResNet.make_stage(BasicBlock, 2, stride_per_block=[1, 1], in_channels=8, out_channels=8, norm="BN")
    return ResNet(BasicStem(3, 8, "BN"), [stage], out_features=["res2"])


def filled(value, prefix=""):
    return {prefix + name: torch.full_like(tensor, value) for name, tensor in resnet().state_dict().items()}


CHECKPOINTS = {
    "Lightning": ({"state_dict": filled(1, "model."), "hyper_parameters": {"lr": 0.1}, "epoch": 3}, 1),
    "Lightning with an average": ({"state_dict": filled(1, "model.") | filled(2, "ema_model.module.")}, 2),
    "teacher": ({"model": filled(1, "student.") | filled(2, "teacher.")}, 2),
    "average with its state": ({"model": filled(1), "ema": {"decay": 0.9, "num_updates": 3, **filled(2)}}, 2),
    "average within an entry": ({"model": filled(1), "ema": {"decay": 0.9, "module": filled(2, "module.")}}, 2),
    "average without tensors": ({"model": filled(1), "ema": {"decay": 0.9}}, 1),
    "entry within an entry": ({"model": {"state_dict": filled(1, "net.")}}, 1),
    "backbone of a detector": (filled(1, "detector.backbone.bottom_up."), 1),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_the_weights_of_a_checkpoint_are_found(tmp_path, case):
    content, value = CHECKPOINTS[case]
    torch.save(content, tmp_path / "w.ckpt")
    model = resnet()
    report = load_weights(model, str(tmp_path / "w.ckpt"), strict=True)
    assert all((tensor == value).all() for tensor in model.state_dict().values())
    assert report.missing == []


def test_the_prefix_and_what_is_not_below_it_are_reported(tmp_path):
    torch.save({"state_dict": filled(1, "net.") | {"loss.weight": torch.ones(3)}}, tmp_path / "w.ckpt")
    report = load_weights(resnet(), str(tmp_path / "w.ckpt"))
    assert "below 'net.'" in str(report)
    assert report.left_over == ["loss.weight"]


class Options:
    """Stands for a class of a training program."""


Options.__module__ = "their_program.options"


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(2, 2)


Network.__module__ = "their_program.options"


@pytest.mark.parametrize("case", ["Lightning", "whole model", "pickle"])
def test_a_file_with_objects_in_it_comes_with_the_way_to_its_weights(tmp_path, monkeypatch, case):
    module = ModuleType("their_program.options")
    module.Options, module.Network = Options, Network
    for name, value in (("their_program", ModuleType("their_program")), (module.__name__, module)):
        monkeypatch.setitem(sys.modules, name, value)
    monkeypatch.chdir(tmp_path)
    network = Network()
    content = {"state_dict": network.state_dict(), "hyper_parameters": Options()}
    if case == "pickle":
        arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
        (tmp_path / "theirs.ckpt").write_bytes(pickle.dumps({"state_dict": arrays, "hyper_parameters": Options()}))
    else:
        torch.save({"model": network} if case == "whole model" else content, "theirs.ckpt")
    with pytest.raises(WeightsError, match=r"theirs\.ckpt is refused.*their_program\.options") as caught:
        read_weights("theirs.ckpt")
    exec(str(caught.value).split("`")[1], {})
    tensors = read_weights("weights.pth").tensors
    assert {name: np.array_equal(tensor, network.state_dict()[name]) for name, tensor in tensors.items()} == {
        "stem.weight": True,
        "stem.bias": True,
    }
