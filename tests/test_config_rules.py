"""Wrong values are refused with their key before anything is built; what can be meant is understood."""

import math

import pytest
from omegaconf import OmegaConf

from maskrcnn_plus.config import get_config, load_config
from maskrcnn_plus.config_rules import RULES, check_config

NUCLEI = "nuclei/mask_rcnn_lite0_fpn"
ZOO = "coco/mask_rcnn_r50_fpn_3x"

# Of those that trained to the end, or ended in a traceback hours later.
WRONG = [
    (NUCLEI, key, value)
    for key, values in {
        "train.max_iter": ["-3", "0", "abc", "nan", "1e30", "2.5", "null", "true", "[1]", "{a: 1}"],
        "train.seed": ["-1", "1e30", "abc", "null", "0.5"],
        "train.accumulate": ["-1", "0", "1e30", "abc"],
        "train.clip_grad_norm": ["-1", "nan", "abc", "inf"],
        "train.ema.decay": ["-1", "0", "1", "1.5", "nan", "abc"],
        "train.ema.enabled": ["2", "maybe", "null", "[]"],
        "train.amp.enabled": ["2", "maybe"],
        "train.amp.dtype": ["float32", "fp16", "16"],
        "train.checkpointer.period": ["-1", "abc", "nan", "0.5"],
        "train.checkpointer.max_to_keep": ["-1", "abc"],
        "train.eval_period": ["-1", "abc", "null"],
        "train.log_period": ["0", "-1", "abc"],
        "train.best.mode": ["maximum", "3"],
        "train.output_dir": ["''", "null", "3", "[a]"],
        "train.channels_last": ["3", "abc"],
        "train.ddp.broadcast_buffers": ["abc"],
        "optimizer.lr": ["-1", "nan", "inf", "abc", "null", "[1]"],
        "optimizer.weight_decay": ["-1", "nan", "abc"],
        "optimizer.params.weight_decay_norm": ["-1", "abc"],
        "lr_multiplier.warmup_length": ["-1", "2", "nan"],
        "lr_multiplier.warmup_method": ["exponential"],
        "lr_multiplier.scheduler.end_value": ["-1", "nan"],
        "lr_multiplier": ["null", "abc"],
        "model": ["null", "abc", "[]"],
        "dataloader.train": ["null"],
        "dataset.max_objects": ["0", "-1", "abc"],
        "dataset.percentiles": ["[99, 1]", "[1]", "[-1, 50]", "[1, 101]", "abc"],
        "dataset.scale": ["0", "-1", "nan", "abc"],
        "dataset.score_threshold": ["-0.1", "1.1", "abc"],
        "dataset.on_error": ["ignore", "null"],
        "dataset.thing_classes": ["[]", "[[a]]", "abc"],
        "dataloader.train.total_batch_size": ["0", "-2", "abc", "1e9"],
        "dataloader.train.num_workers": ["-1", "1e6", "abc"],
        "model.pixel_std": ["[1, 2, 0]", "[]", "abc"],
        "model.pixel_mean": ["[1, nan, 3]", "3abc"],
        "model.roi_heads.batch_size_per_image": ["-3", "0", "abc"],
        "model.roi_heads.positive_fraction": ["-1", "0", "2", "nan"],
        "model.backbone.bottom_up.weights": ["0", "null", "[a]"],
        "model.roi_heads.box_head.fc_dims": ["[0]", "[-3]", "[[1]]", "abc"],
        "model.roi_heads.box_pooler.output_size": ["0", "[7]", "abc"],
        "model.roi_heads.proposal_matcher.thresholds": ["[2]", "[]", "[0.7, 0.3]"],
        "model.proposal_generator.nms_thresh": ["-1", "2", "null"],
        "model.proposal_generator.pre_nms_topk": ["[1]", "[0, 5]", "3"],
        "model.proposal_generator.anchor_generator.sizes": ["[]", "[[0]]", "[16]", "[[a]]"],
    }.items()
    for value in values
] + [
    (ZOO, "optimizer.momentum", "-1"),
    (ZOO, "optimizer.momentum", "1.5"),
    (ZOO, "lr_multiplier.scheduler.milestones", "[3, 2]"),
    (ZOO, "lr_multiplier.scheduler.values", "[1, -1]"),
    (ZOO, "dataset.train.json", "null"),
    (ZOO, "model.backbone.bottom_up.freeze_at", "-1"),
]


@pytest.fixture(scope="module")
def shipped():
    return {name: get_config(name) for name in (NUCLEI, ZOO)}


@pytest.fixture
def loaded(shipped, monkeypatch):
    """`load_config` of configs that are read once."""
    monkeypatch.setattr("maskrcnn_plus.config.get_config", lambda name: shipped[name].copy())
    return load_config


@pytest.mark.parametrize(("name", "key", "value"), WRONG)
def test_wrong_values_are_refused_with_their_key(name, key, value, loaded):
    with pytest.raises(ValueError, match="=") as error:
        loaded(name, [f"{key}={value}"])
    text = str(error.value)
    assert f"{key}=" in text
    assert len(text.splitlines()) == 1
    assert "needed" in text or "group of keys" in text


@pytest.mark.parametrize(
    "key",
    [
        *("model.backbone", "model.proposal_generator", "model.proposal_generator.anchor_generator"),
        *("model.proposal_generator.box2box_transform", "model.roi_heads", "model.roi_heads.mask_head"),
        "dataloader.test.mapper",
    ],
)
def test_a_number_in_place_of_a_part_is_refused(key, loaded):
    """As a description of weights may have one; the model would be built, and fail at the first image."""
    cfg = loaded(NUCLEI, [])
    for value in (3, True, "text"):
        OmegaConf.update(cfg, key, value)
        with pytest.raises(ValueError, match=f"{key}={value}: a component"):
            check_config(cfg)
    OmegaConf.update(cfg, key, None)
    check_config(cfg)


@pytest.mark.parametrize(
    ("key", "value", "understood"),
    [
        ("train.max_iter", "1e4", 10000),
        ("train.max_iter", "300.0", 300),
        ("train.amp.enabled", "1", True),
        ("train.checkpointer.max_to_keep", "null", None),
        ("optimizer.lr", "'1e-4'", 1e-4),
        ("optimizer.lr", "0", 0),
        ("dataset.percentiles", "null", None),
        ("dataset.thing_classes", "[a, 2]", ["a", 2]),
        ("model.roi_heads.box_pooler.output_size", "[7, 9]", [7, 9]),
        ("model.roi_heads.mask_pooler", "null", None),
        ("train.init_checkpoint", "''", ""),
    ],
)
def test_what_can_be_meant_is_understood(key, value, understood, loaded):
    found = OmegaConf.select(loaded(NUCLEI, [f"{key}={value}"]), key)
    assert found == understood
    assert isinstance(found, type(understood)) or OmegaConf.is_config(found)


def test_all_wrong_values_are_told_at_once_and_a_reference_only_where_it_points(loaded):
    with pytest.raises(ValueError, match="needed") as error:
        loaded(NUCLEI, ["train.seed=-1", "dataset.max_objects=-4", "train.log_period=0"])
    text = str(error.value)
    assert all(entry in text for entry in ("train.seed=-1", "dataset.max_objects=-4", "train.log_period=0"))
    assert "test_topk_per_image" not in text  # which is ${dataset.max_objects}


def test_keys_without_a_rule_are_free_but_not_nan():
    check_config(OmegaConf.create({"mine": {"a": "x", "b": [1.0, None]}}))
    with pytest.raises(ValueError, match=r"mine\.b\.1=nan"):
        check_config(OmegaConf.create({"mine": {"b": [1.0, math.nan]}}))


def test_what_nobody_asks_for_need_not_be_there():
    check_config(OmegaConf.create({"dataloader": {"train": {"_target_": "x", "num_workers": "${nothing}"}}}))


def test_every_rule_says_what_it_wants():
    assert all(rule.wanted and "None" not in rule.wanted for rule in RULES.values())
