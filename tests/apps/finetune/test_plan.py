"""The config that is written: what it says is what was decided, and what the user gives wins."""

import pytest
from omegaconf import OmegaConf

from maskrcnn_plus.apps.finetune.plan import Plan
from maskrcnn_plus.config import get_config
from maskrcnn_plus.errors import ConfigError


def leaves(cfg):
    """A config as plain data."""
    return OmegaConf.to_container(cfg)


def test_the_file_gives_the_same_config(tmp_path):
    plan = Plan("common/any_data", ["train.max_iter=7", "dataset.thing_classes=['a cell',b]", "train.amp.enabled=true"])
    plan.decide({"dataset.root": 'a "quoted" \\ folder', "dataset.percentiles": None}, "Why.")
    plan.decide({"dataloader.train.mapper.mapper.augmentations.0.scale": [0.5, 1.0]}, "Because " * 40)
    plan.decide({"train.max_iter": 9, "train.eval_period": 3}, "Time.")
    plan.write(tmp_path / "config.py", ["A head."])
    written = get_config(str(tmp_path / "config.py"))
    assert leaves(written) == leaves(plan.cfg)
    assert written.train.max_iter == 7
    assert written.train.eval_period == 3
    text = (tmp_path / "config.py").read_text()
    assert "# A head.\n" in text
    assert "# Why.\ndataset.root" in text
    assert "# As given.\ntrain.max_iter = 7" in text
    assert max(len(line) for line in text.splitlines() if line.startswith("#")) <= 120


@pytest.mark.parametrize("source", ["zoo/torchvision_mask_rcnn_r50_fpn", "coco/mask_rcnn_r101_fpn_3x"])
def test_a_model_of_other_weights(tmp_path, source):
    plan = Plan("common/any_data", ["model.min_mask_area=3", "dataset.thing_classes=[x]"])
    plan.take_model(source)
    plan.decide({"model.min_mask_area": 9, "model.max_covered": 0.5}, "Figures.")
    plan.write(tmp_path / "config.py", [])
    written = get_config(str(tmp_path / "config.py"))
    assert leaves(written) == leaves(plan.cfg)
    assert written.model.min_mask_area == 3
    changed = get_config(source).model
    changed.min_mask_area, changed.max_covered = 3, 0.5
    assert leaves(written.model) == leaves(changed)


@pytest.mark.parametrize("key", ["train.amp", "train.amp.enabled"])
def test_what_is_given_above_or_below_wins(key):
    plan = Plan("common/any_data", ["train.amp.enabled=true"])
    plan.decide({key: {"enabled": False} if key == "train.amp" else False}, "No.")
    assert plan.get("train.amp.enabled") is True
    assert plan.decisions[0].given == [key]


def test_a_misspelt_key_and_a_value_that_cannot_be_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.max_itr.*train\.max_iter"):
        Plan("common/any_data", ["train.max_itr=5"])
    plan = Plan("common/any_data", ["train.max_iter=-1"])
    with pytest.raises(ConfigError, match=r"train\.max_iter=-1"):
        plan.write(tmp_path / "config.py", [])
    assert not (tmp_path / "config.py").exists()
