"""Learning rates in proportion to the images of an optimizer step."""

import logging
import re

import pytest
from omegaconf import OmegaConf

from maskrcnn_plus.config import get_config, list_configs, load_config
from maskrcnn_plus.learning_rate import images_per_step, linear_lr, log_learning_rate

BATCH = "dataloader.train.total_batch_size"


@pytest.mark.parametrize("name", list_configs())
def test_shipped_configs_are_tuned_for_their_own_batch(name):
    cfg = get_config(name)
    meant = OmegaConf.to_container(cfg.optimizer, resolve=False)["lr"]
    assert meant == linear_lr(cfg.optimizer.lr, images_per_step(cfg))


@pytest.mark.parametrize(
    ("overrides", "lr"),
    [
        ([f"{BATCH}=1"], 0.02 / 16),
        ([f"{BATCH}=32"], 0.04),
        ([f"{BATCH}=2", "train.accumulate=8"], 0.02),
        (["train.accumulate=2"], 0.04),
        ([f"{BATCH}=1", "optimizer.lr=0.02"], 0.02),
        (["optimizer.lr=1e-3"], 0.001),
    ],
)
def test_the_rate_follows_the_batch_unless_it_is_given(overrides, lr):
    cfg = load_config("coco/mask_rcnn_r50_fpn", overrides)
    assert cfg.optimizer.lr == pytest.approx(lr, rel=1e-12)
    assert cfg.train.max_iter == 90000


def test_rates_of_groups_follow_too():
    cfg = load_config("coco/mask_rcnn_vitb_simple_pyramid", [f"{BATCH}=16"])
    assert cfg.optimizer.params.base_lr == pytest.approx(2.5e-5, rel=1e-12)


@pytest.mark.parametrize(
    ("overrides", "level", "said"),
    [
        ([], logging.INFO, "Learning rate 0.02 with 16 images an optimizer step, as it is meant"),
        ([f"{BATCH}=1"], logging.WARNING, "Learning rate 0.00125 with 1 images .*: the config's 0.02 is for 16"),
        ([f"{BATCH}=1", "optimizer.lr=0.01"], logging.INFO, "Learning rate 0.01 with 1 images.*whatever the batch"),
    ],
)
def test_what_was_done_is_said(caplog, overrides, level, said):
    caplog.set_level(logging.INFO, "maskrcnn_plus")
    log_learning_rate(load_config("coco/mask_rcnn_r50_fpn", overrides))
    (record,) = caplog.records
    assert record.levelno == level
    assert re.search(said, record.getMessage())


def test_an_optimizer_alone_keeps_the_rate_as_it_is_meant():
    assert OmegaConf.create({"optimizer": {"lr": linear_lr(1e-5, 8)}}).optimizer.lr == 1e-5
