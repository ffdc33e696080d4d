"""Overrides on the command line: valid keys are applied, misspelt ones refused with the nearest valid ones."""

import pytest
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf
from torch import nn

from maskrcnn_plus.overrides import apply_overrides


def _config():
    return OmegaConf.create(
        {
            "train": {"max_iter": 10, "amp": {"enabled": False}},
            "model": L(nn.Linear)(in_features=2, out_features="${train.max_iter}"),
            "steps": [{"size": 1}, {"size": 2}],
        },
        flags={"allow_objects": True},
    )


def test_values_are_parsed_and_applied():
    cfg = apply_overrides(
        _config(), ["train.max_iter=5", "train.amp.enabled=true", "model.in_features=7", "steps.1.size=[3,4]"]
    )
    assert cfg.train.max_iter == 5
    assert cfg.train.amp.enabled is True
    assert (cfg.model.in_features, cfg.model.out_features) == (7, 5)
    assert cfg.steps[1].size == [3, 4]


def test_nothing_to_override_changes_nothing():
    assert apply_overrides(_config(), []) == _config()


def test_an_argument_of_the_target_may_be_added():
    assert apply_overrides(_config(), ["model.bias=false"]).model.bias is False


def test_an_interpolated_key_can_be_replaced():
    assert apply_overrides(_config(), ["model.out_features=3"]).model.out_features == 3


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("train.max_itr=5", "train.max_iter"),
        ("trian.max_iter=5", "train.max_iter"),
        ("max_iter=5", "train.max_iter"),
        ("model.in_feature=5", "model.in_features"),
        ("model.biass=false", "model"),
        ("steps.2.size=3", "steps.1.size"),
        ("train.max_iter.deep=3", "train.max_iter"),
        ("qwertz=1", "top-level keys are train, model, steps"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(override, hint):
    cfg = _config()
    with pytest.raises(ValueError, match="Unknown config key") as error:
        apply_overrides(cfg, ["train.max_iter=99", override])
    assert hint in str(error.value)
    assert cfg.train.max_iter == 10


def test_a_malformed_value_is_refused():
    with pytest.raises(ValueError, match="cannot be read"):
        apply_overrides(_config(), ["steps=[1,"])


def test_an_entry_without_a_value_is_refused():
    with pytest.raises(ValueError, match="key=value"):
        apply_overrides(_config(), ["train.max_iter"])
