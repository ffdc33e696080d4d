"""What cannot be built is named by its key; what can be is what Detectron2's `instantiate` gives."""

from dataclasses import dataclass

import pytest
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from omegaconf import ListConfig, OmegaConf

from maskrcnn_plus.build import build
from maskrcnn_plus.errors import ConfigError, UserError


class Part:
    def __init__(self, size, inner=None, parts=()):
        if size < 0:
            raise ValueError(f"size must not be negative, got {size}.")
        self.size, self.inner, self.parts = size, inner, parts

    def __eq__(self, other):
        return type(self) is type(other) and vars(self) == vars(other)


@dataclass
class Shape:
    channels: int = 3


def _refuse():
    raise UserError("weights.pth does not exist.")


def _config(**changes):
    cfg = OmegaConf.create({"number": 3}, flags={"allow_objects": True})
    cfg.model = L(Part)(
        size="${number}",
        inner=L(Part)(size=1, inner={"plain": [L(Part)(size=-1)]}),
        parts=[L(Part)(size=1), 5, L(Part)(size=2, parts=[L(Part)(size=4)])],
    )
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, merge=False, force_add=True)
    return cfg


def test_it_builds_what_instantiate_builds():
    ours, theirs = build(_config(), "model"), instantiate(_config().model)
    assert ours == theirs
    assert isinstance(ours.parts, ListConfig)
    assert ours.parts[2].parts[0].size == 4
    assert ours.inner.inner.plain[0].size == -1  # what is in a plain mapping is the callee's
    assert build(_config(), "number") == 3


def test_dataclasses_reach_a_constructor_as_instantiate_gives_them():
    """The installed Detectron2's, of which the older ones give mappings."""
    cfg = _config(model__inner=Shape(), model__parts=[Shape(4)])
    ours, theirs = build(cfg, "model"), instantiate(cfg.model)
    assert ours == theirs
    for built, expected in (
        (ours.inner, theirs.inner),
        (ours.parts[0], theirs.parts[0]),
        (build(cfg, "model.inner"), theirs.inner),
    ):
        assert type(built) is type(expected)


@pytest.mark.parametrize(
    ("changes", "key", "cause"),
    [
        ({"model__size": -1}, "model", "size must not be negative, got -1."),
        ({"number": -4}, "model", "got -4"),
        ({"model__inner__size": "x"}, "model.inner", "TypeError"),
        ({"model__parts": [1, L(Part)(size=-2)]}, "model.parts.1", "got -2"),
        ({"model__inner__sise": 3}, "model.inner", "sise"),
        ({"model__inner__size": "${nothing}"}, "model.inner", "nothing"),
        ({"model": None}, "model", "add it"),
        ({"model__inner__inner": L("no.such.module.Thing")()}, "model.inner.inner", "no.such.module.Thing.*No module"),
    ],
)
def test_the_innermost_part_that_fails_is_named(changes, key, cause):
    with pytest.raises(ConfigError, match=cause) as error:
        build(_config(**changes), "model")
    assert f"`{key}`" in str(error.value)
    assert error.value.key == key


def test_an_error_that_says_all_stays_as_it_is():
    with pytest.raises(UserError, match=r"^weights.pth does not exist.$"):
        build(_config(model__inner=L(_refuse)()), "model")


def test_given_arguments_are_taken_and_not_built():
    given = Part(7)
    assert build(_config(model__inner=L(_refuse)()), "model", inner=given).inner is given
