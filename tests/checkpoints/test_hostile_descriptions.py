"""A checkpoint's description builds parts of an allow-list and nothing else: hostile and malformed ones are refused."""

import sys

import pytest
import torch
from described_models import described, forged

from maskrcnn_plus.build import build
from maskrcnn_plus.checkpoints.description import (
    describe,
    described_config,
    restore_config,
)
from maskrcnn_plus.checkpoints.parts import find_part
from maskrcnn_plus.errors import ConfigError, UserError
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.weights.conversion import WeightsError

HOSTILE = {
    "os.system": {"_target_": "os.system", "command": "touch {file}"},
    "posix": {"_target_": "posix.system", "command": "touch {file}"},
    "eval": {"_target_": "builtins.eval", "source": "open('{file}', 'w')"},
    "hub": {"_target_": "torch.hub.load", "repo_or_dir": "a/b", "model": "c"},
    "torch.load": {"_target_": "torch.load", "f": "{file}"},
    "locate": {"_target_": "detectron2.utils.registry.locate", "name": "os.system"},
    "through a module": {"_target_": "detectron2.layers.wrappers.torch.hub.load", "repo_or_dir": "a/b", "model": "c"},
    "LazyConfig": {"_target_": "detectron2.config.LazyConfig.load", "filename": "{file}"},
    "instantiate": {"_target_": "detectron2.config.instantiate", "cfg": {"_target_": "os.system"}},
    "build": {"_target_": "maskrcnn_plus.build.build", "cfg": {}, "key": "x"},
    "our config": {"_target_": "maskrcnn_plus.config.get_config", "name": "{file}"},
    "our weights": {"_target_": "maskrcnn_plus.checkpoints.load_weights", "source": "https://example.org/x.pth"},
    "our data": {"_target_": "maskrcnn_plus.data.register_coco", "name": "x", "json_file": "{file}", "image_root": ""},
    "build_model": {"_target_": "detectron2.modeling.build_model", "cfg": {}},
    "mmdet": {"_target_": "detectron2.modeling.mmdet_wrapper.MMDetBackbone", "backbone": {"type": "x"}},
    "timm": {"_target_": "timm.create_model", "model_name": "resnet18", "pretrained": True},
    "timm entry": {"_target_": "timm.models.resnet.resnet18", "pretrained": True},
    "a yacs config": {"_target_": "detectron2.modeling.GeneralizedRCNN", "cfg": {"MODEL": {"WEIGHTS": "{file}"}}},
    "a nested target": {"_target_": {"_target_": "functools.partial"}},
    "a dunder": {"_target_": "torch.nn.Linear.__init__.__globals__"},
    "another process": {"_target_": "torch.nn.parallel.DistributedDataParallel", "module": None},
    "a missing module": {"_target_": "torch.nn.nothing.Here"},
    "an interpolation": {"_target_": "${train.output_dir}"},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_part_is_refused_wherever_it_stands(case, tmp_path):
    describe(restore_config(described()["config"]))  # which loads all that an honest one needs
    witness, loaded = tmp_path / "witness", set(sys.modules)

    def fill(value):
        if isinstance(value, dict):
            return {key: fill(each) for key, each in value.items()}
        return value.replace("{file}", str(witness)) if isinstance(value, str) else value

    part = fill(HOSTILE[case])

    def as_argument(config):
        config["model"]["roi_heads"]["box_head"]["deep"] = [{"inside": part}]
        config["dataloader"]["test"]["mapper"] = part

    with pytest.raises(WeightsError, match=r"is refused|not built from a checkpoint"):
        Predictor(forged(tmp_path, as_argument, None), device="cpu")
    if "cfg" not in part:
        with pytest.raises(ConfigError, match="none of the parts"):
            find_part(part["_target_"])
    assert not witness.exists()
    new = {name.split(".")[0] for name in set(sys.modules) - loaded}
    assert new <= {"timm", "torch", "detectron2"}


def test_a_hostile_callable_is_refused(tmp_path):
    path = forged(tmp_path, lambda config: config["backbone"].update(norm={"_callable_": "os.system"}))
    with pytest.raises(WeightsError, match=r"not built from a checkpoint: os\.system"):
        described_config(path)
    with pytest.raises(ConfigError, match=r"os\.system.* is not built"):
        build(restore_config({"model": {"_target_": "os.system", "command": "ls"}}), "model")


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:HOME}",
        "${oc.decode:x}",
        "x${oc.env:HOME}y",
        "${oc.select:${oc.env:HOME}}",
        "${${train.output_dir}:HOME}",
        "${oc.create:{a:1}}",
        "${oc.select:" * 5000,
        "\\${oc.env:HOME}",
    ],
)
def test_interpolations_with_other_resolvers_are_refused(text, tmp_path):
    with pytest.raises(WeightsError, match="interpolation"):
        described_config(forged(tmp_path, lambda config: config.update(x=text), "train"))


def test_a_part_that_an_interpolation_leads_to_is_refused_too(tmp_path):
    def change(config):
        config["train"]["evil"] = {"_target_": "os.getcwd"}
        config["model"]["backbone"] = "${train.evil}"

    with pytest.raises(WeightsError, match=r"os\.getcwd"):
        described_config(forged(tmp_path, change, None))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset", "???"),
        ("dataset", 1e308),
        ("dataset", []),
        ("model.pixel_std.in_chans", {"a": 1}),
        ("model.roi_heads", [[]]),
        ("model.pixel_mean", "${model}"),
        ("dataset.score_threshold", "${model}"),
        ("dataset.thing_classes", {"_target_": "torch.nn.Linear"}),
        ("dataset.channels", "${a}"),
    ],
)
def test_odd_values_are_refused_with_a_reason(key, value, tmp_path):
    def change(config):
        *path, last = key.split(".")
        for name in path:
            config = config[name]
        config[last] = value

    with pytest.raises(WeightsError, match=r"forged\.pth is refused: its config cannot be taken \(.+\)"):
        described_config(forged(tmp_path, change, None))


@pytest.mark.parametrize("change", ["circle", "laughs", "deep", "object", "key", "list", "value"])
def test_malformed_configs_are_refused_by_name(change, tmp_path):
    def apply(config):
        if change == "circle":
            config["model"]["input_format"] = "${model.input_format}"
        elif change == "laughs":
            config["train"]["a0"] = ["x"] * 10
            for level in range(1, 12):
                config["train"][f"a{level}"] = [f"${{train.a{level - 1}}}"] * 10
            config["model"]["deep"] = "${train.a11}"
        elif change == "deep":
            node = config["model"]
            for _ in range(60):
                node = node.setdefault("deeper", {})
        elif change == "object":
            config["model"]["x"] = torch.zeros(1)
        elif change == "key":
            config["model"][1.5] = 1
        elif change == "list":
            config["model"] = [1]
        else:
            config["model"]["roi_heads"]["box_predictor"]["test_score_thresh"] = "high"

    with pytest.raises(UserError, match="is refused" if change != "circle" else "interpolation"):
        build(described_config(forged(tmp_path, apply, None)), "model")


def test_weights_of_a_backbone_are_neither_read_nor_downloaded(tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("it reads weights")

    monkeypatch.setattr("maskrcnn_plus.backbones.timm.load_backbone_weights", lambda *a, **_: a[2] and never())
    path = forged(tmp_path, lambda config: config["backbone"]["bottom_up"].update(weights="timm"))
    assert described_config(path).model.backbone.bottom_up.weights == ""
    build(described_config(path), "model")
    for options in ({"pretrained": True}, {"checkpoint_path": "x.pth"}):
        path = forged(tmp_path, lambda config, o=options: config["backbone"]["bottom_up"].update(options=o))
        with pytest.raises(ConfigError, match="options must not contain"):
            build(described_config(path), "model")
    for name in ("hf-hub:somebody/model", "local-dir:/tmp"):
        path = forged(tmp_path, lambda config, n=name: config["backbone"]["bottom_up"].update(name=n))
        with pytest.raises(UserError, match="no model named"):
            build(described_config(path), "model")
