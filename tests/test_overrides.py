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


def test_an_argument_of_a_base_class_may_be_added_where_the_constructor_hands_it_on():
    class Given(nn.Linear):
        def __init__(self, *, depth=1, **kwargs):
            super().__init__(**kwargs)

    class Closed(nn.Linear):
        def __init__(self, in_features):
            super().__init__(in_features, 1)

    cfg = _config()
    cfg.model._target_ = Given
    assert apply_overrides(cfg, ["model.bias=false", "model.depth=2"]).model.bias is False
    cfg = _config()
    cfg.model._target_ = Closed
    for name in ("bias", "self"):
        with pytest.raises(ValueError, match=f"Unknown config key 'model.{name}'"):
            apply_overrides(cfg, [f"model.{name}=false"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["model._target_=torch.nn.Dropout", "model.p=0.25"],
        ["model={p: 0.25, _target_: torch.nn.Dropout}"],
        ["model={_target_: torch.nn.Dropout}", "model={p: 0.25}"],
    ],
)
def test_an_argument_of_a_component_that_an_override_puts_there_may_be_added(overrides):
    assert apply_overrides(_config(), overrides).model.p == 0.25
    cfg = _config()
    with pytest.raises(ValueError, match=r"model\.nothing"):
        apply_overrides(cfg, [*overrides, "model.nothing=1"])
    assert cfg == _config()


@pytest.mark.parametrize("path", ["daten/Zellkörper 2", "/データ/細胞", "a=b/c#1", "run;2&3"])
def test_text_of_any_language_needs_no_quotes(path):
    cfg = apply_overrides(_config(), [f"train.max_iter={path}", f"steps.0.size ={path}"])
    assert (cfg.train.max_iter, cfg.steps[0].size) == (path, path)


def test_pythons_none_is_null():
    cfg = apply_overrides(_config(), ["train.max_iter=None", "steps.0.size='None'"])
    assert (cfg.train.max_iter, cfg.steps[0].size) == (None, "None")


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


@pytest.mark.parametrize("value", ["[" * 5000, "[" * 300 + "]" * 300, "{a:" * 60 + "1" + "}" * 60])
def test_deeply_nested_values_are_refused_in_a_short_line(value):
    with pytest.raises(ValueError, match=r"steps=.*(cannot be read|nested too deeply)") as error:
        apply_overrides(_config(), [f"steps={value}"])
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps={a:1}", "a list is needed, as the config has"),
        ("train=5", "train is a group of keys: max_iter, amp"),
        ("train=[1]", "train is a group of keys"),
        ("train=null", "train is a group of keys"),
        ("train.amp=yes", "train.amp is a group of keys: enabled"),
        ("model=5", "a component is needed"),
        ("train.max_iter=1,2", r"a list stands in brackets: train.max_iter=\[a, b\]"),
        ("train.max_iter=range(3)", "one value is needed"),
        ("train.max_iter=${nothing}", "'nothing' not found"),
        ("train.max_iter='a", "cannot be read"),
        ("train.max_iter=~/a", "cannot be read"),  # which no shell has made a home of
        ("train.max_iter==5", "cannot be read"),
        ("steps=(1,2)", "cannot be read"),
        ("train={max_iter: 3, amp: {enabld: true}}", "Unknown config key 'train.amp.enabld'"),
        ("model={biass: true}", "Unknown config key 'model.biass'"),
    ],
)
def test_values_of_another_kind_are_refused_with_the_key(override, message):
    with pytest.raises(ValueError, match=message) as error:
        apply_overrides(_config(), [override])
    assert override.partition("=")[0] in str(error.value)


def test_a_mapping_changes_the_keys_that_it_has():
    cfg = apply_overrides(_config(), ["train={max_iter: 3, amp: {enabled: true}}", "model={bias: false}"])
    assert cfg.train == {"max_iter": 3, "amp": {"enabled": True}}
    assert (cfg.model.in_features, cfg.model.out_features, cfg.model.bias) == (2, 3, False)


def test_a_list_takes_the_place_of_a_component_and_a_mapping_that_of_null():
    cfg = _config()
    cfg.train.extra = None
    assert apply_overrides(cfg, ["model=[1, 2]", "train.extra={a: 1}"]).model == [1, 2]
    assert cfg.train.extra == {"a": 1}
