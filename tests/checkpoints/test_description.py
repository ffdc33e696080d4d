"""Checkpoints that say what they are: rebuilt without a config."""

import functools
import os

import cv2
import numpy as np
import pytest
import torch
from described_models import forged, small_config
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from omegaconf import OmegaConf
from torch import nn

from maskrcnn_plus.build import build
from maskrcnn_plus.checkpoints import Checkpointer, load_weights
from maskrcnn_plus.checkpoints.description import (
    DESCRIPTION,
    describe,
    described_config,
    read_description,
    restore_config,
)
from maskrcnn_plus.checkpoints.model_size import check_model_size
from maskrcnn_plus.config import get_config, list_configs, skip_pretrained
from maskrcnn_plus.data.classes import resolve_classes
from maskrcnn_plus.errors import ConfigError
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.weights.conversion import WeightsError


class Mine(nn.Module):
    """A part of the user's own."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint with a description, and the config that it is of."""
    folder, cfg = tmp_path_factory.mktemp("described"), small_config()
    classes = resolve_classes(cfg, splits=())
    torch.manual_seed(0)
    model = build(cfg, "model")
    description = describe(cfg, classes.names, data={"train": {"images": 3}})
    checkpointer = Checkpointer(model, str(folder), class_names=classes.names, description=description)
    checkpointer.metrics = {"segm/AP": 12.5}
    checkpointer.save("model_best", only_model=True)
    return str(folder / "model_best.pth"), cfg


def names_of_parts(cfg):
    """Key and name of each component that a prediction builds."""
    found, waiting = {}, {"model": cfg.model, "mapper": cfg.dataloader.test.mapper}
    while waiting:
        key, node = waiting.popitem()
        if OmegaConf.is_config(node):
            waiting |= {f"{key}.{k}": node[k] for k in (node if OmegaConf.is_dict(node) else range(len(node)))}
        elif callable(node):
            found[key.removesuffix("._target_")] = node.__qualname__
    return {key: name for key, name in found.items() if name not in ("locate", "LayerNorm2d", "ShapeSpec")}


@pytest.fixture
def image_file(tmp_path):
    path = str(tmp_path / "image.png")
    cv2.imwrite(path, np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8))
    return path


def test_a_checkpoint_predicts_what_its_config_does(trained, image_file):
    weights, cfg = trained
    alone, both = (Predictor(*given, device="cpu", optimize=False) for given in ((weights,), (cfg, weights)))
    assert alone.class_names == ["round", "spindle", "lobed"]
    found, expected = (each.predict(image_file) for each in (alone, both))
    assert len(found) == len(expected)
    torch.testing.assert_close(found.scores, expected.scores)
    assert list(found.pred_masks_rle) == list(expected.pred_masks_rle)


def test_it_says_what_it_is(trained):
    description = read_description(trained[0])
    assert description["class_names"] == ["round", "spindle", "lobed"]
    assert description["metrics"] == {"segm/AP": 12.5}
    assert description["data"] == {"train": {"images": 3}}
    assert description["unknown"] == []
    assert torch.__version__.startswith(description["packages"]["torch"])
    assert description["pixels"]["input_format"] == "RGB"
    assert description["pixels"]["pixel_mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert description["pixels"]["scale"] == 1.0


def test_overrides_reach_what_refers_to_them(trained):
    cfg = described_config(trained[0], ["dataset.scale=2.0", "dataset.max_objects=7"])
    assert instantiate(cfg.dataloader.test.mapper).augmentations.augs[0].scale == 2.0
    assert cfg.model.roi_heads.box_predictor.test_topk_per_image == 7
    with pytest.raises(ConfigError, match=r"Did you mean dataset\.scale"):
        described_config(trained[0], ["dataset.scal=2.0"])


@pytest.mark.parametrize("name", list_configs())
def test_every_shipped_config_is_described(name):
    cfg = get_config(name)
    description = describe(cfg)
    assert description["unknown"] == []
    assert names_of_parts(restore_config(description["config"])) == names_of_parts(cfg)


@pytest.mark.parametrize("name", ["coco/mask_rcnn_x101_32x8d_fpn_3x", "nuclei/mask_rcnn_plus"])
def test_the_model_of_a_description_has_the_same_tensors(name):
    cfg = get_config(name)
    skip_pretrained(cfg)
    with torch.device("meta"):
        expected, found = (build(each, "model") for each in (cfg, restore_config(describe(cfg)["config"])))
    assert [(k, v.shape) for k, v in found.state_dict().items()] == [
        (k, v.shape) for k, v in expected.state_dict().items()
    ]


def test_parts_of_ones_own_need_the_config_or_trust(tmp_path):
    cfg = small_config()
    cfg.model.backbone = L(Mine)()
    cfg.model.pixel_mean, cfg.model.pixel_std = [0.0] * 3, [1.0] * 3
    description = describe(cfg)
    assert description["unknown"] == [f"{__name__}.Mine"]
    torch.save({"model": {}, DESCRIPTION: description}, tmp_path / "own.pth")
    with pytest.raises(WeightsError, match=r"own\.pth was trained with .*Mine.*--config-file"):
        Predictor(str(tmp_path / "own.pth"))
    trusted = described_config(str(tmp_path / "own.pth"), trusted=[__name__])
    assert isinstance(build(trusted, "model.backbone"), Mine)


def test_old_checkpoints_and_missing_ones_say_what_to_do(tmp_path):
    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "old.pth")
    with pytest.raises(WeightsError, match=r"old\.pth does not say .*--config-file"):
        Predictor(str(tmp_path / "old.pth"))
    with pytest.raises(WeightsError, match=r"missing\.pth does not exist"):
        Predictor(os.fspath(tmp_path / "missing.pth"))
    with pytest.raises(ValueError, match="weights are missing"):
        Predictor("demo/mask_rcnn_lite0_fpn")
    torch.save({"model": {}, DESCRIPTION: {"version": 99, "config": {}}}, tmp_path / "new.pth")
    with pytest.raises(WeightsError, match="another version"):
        Predictor(str(tmp_path / "new.pth"))


def test_a_head_for_other_classes_keeps_the_rows_of_those_with_the_same_name(trained):
    weights = trained[0]
    cfg = described_config(weights, ["dataset.thing_classes=[star,Lobed]", "dataset.num_classes=2"])
    names = resolve_classes(cfg, splits=()).names
    model = build(cfg, "model")
    report = load_weights(model, weights, class_names=names)
    stored = torch.load(weights, weights_only=True)["model"]
    head = model.roi_heads.box_predictor.cls_score.weight
    assert head.shape[0] == 3
    assert torch.equal(head[1:], stored["roi_heads.box_predictor.cls_score.weight"][2:])  # lobed and the background
    predictor = "roi_heads.mask_head.predictor.weight"
    assert torch.equal(model.state_dict()[predictor][1], stored[predictor][2])
    assert "kept: Lobed" in report.rows[predictor]


def test_a_checkpoint_from_a_gpu_predicts_where_there_is_none(tmp_path):
    path = forged(tmp_path, lambda config: config.update(device="cuda:3"), "train")
    assert described_config(path).train.device == "auto"
    assert described_config(path, ["train.device=cpu"]).train.device == "cpu"


def test_no_config_ends_a_training(tmp_path):
    """What cannot be described is said in the description."""
    cfg = small_config()
    cfg.model.odd = functools.partial(print, 1)
    cfg.train.more = {1.5: "a", "b": np.add, "c": "\\${oc.env:HOME}", "d": np.zeros(2), "e": "${nothing}"}
    description = describe(cfg)
    assert description["unknown"] == ["a key is neither text nor a number"]
    del cfg.train.more[1.5]
    assert describe(cfg)["config"]["train"]["more"]["d"] == {"_object_": "ndarray"}
    torch.save({"model": {}, DESCRIPTION: description}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"odd\.pth is refused"):
        described_config(str(tmp_path / "odd.pth"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.roi_heads.box_head.fc_dims", [100_000, 100_000]),
        ("model.backbone.out_channels", 60_000),
        ("model.proposal_generator.head.num_anchors", 100_000_000),
        ("dataset.thing_classes", [f"class {k}" for k in range(19_000)]),
    ],
)
def test_a_model_far_larger_than_its_file_is_refused_before_memory_is_taken(trained, tmp_path, key, value):
    """Its parts may not fit either, which is told as soon."""
    content = torch.load(trained[0], weights_only=True)
    node = content[DESCRIPTION]["config"]
    *parents, last = key.split(".")
    for name in parents:
        node = node[name]
    node[last] = value
    path = tmp_path / "large.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"large\.pth is refused"):
        described_config(str(path))


@pytest.mark.parametrize(
    "name",
    [
        "nuclei/mask_rcnn_plus",
        "coco/mask_rcnn_swin_t_fpn",
        "coco/mask_rcnn_vitb_simple_pyramid",
        "zoo/torchvision_mask_rcnn_r50_fpn_v2",
    ],
)
def test_models_of_shipped_configs_have_the_size_of_their_weights(name, tmp_path):
    cfg = get_config(name)
    resolve_classes(cfg, splits=())
    with torch.device("meta"):
        skip_pretrained(cfg)
        size = sum(each.numel() for each in build(cfg, "model").parameters())
    path = tmp_path / "half.pth"
    with open(path, "wb") as file:
        file.truncate(2 * size)  # of float16
    check_model_size(cfg, str(path))
    with open(path, "wb") as file:
        file.truncate(10)
    if 4 * size > 2**26 + 80:
        with pytest.raises(WeightsError, match="describes a model of"):
            check_model_size(cfg, str(path))
