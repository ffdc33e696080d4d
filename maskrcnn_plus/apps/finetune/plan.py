"""What follows from the data, decision by decision, and the config file that says it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.checkpoints.description import described_config
from maskrcnn_plus.config import config_folder, get_config, list_configs
from maskrcnn_plus.config_rules import check_config
from maskrcnn_plus.data.diameter import ScaleToDiameter
from maskrcnn_plus.overrides import apply_overrides, find_changes


class Decision(NamedTuple):
    """One decision.

    Attributes:
        values: what is set, by key.
        reason: a sentence with the figure behind it.
        given: keys that the user has set instead.
    """

    values: dict[str, Any]
    reason: str
    given: list[str]


class Plan:
    """A config that grows by decisions. What the user gives wins, and later decisions see it.

    Attributes:
        base: name of the shipped config whose parts are changed.
        model_of: where the model is from, if not from the base; see `take_model`.
        diameter: of the objects that this model has learned, pixels of its input; None of one for any diameter.
        cfg: the config as it is now.
        decisions: in their order.
    """

    def __init__(self, base: str, overrides: Sequence[str]) -> None:
        """Load the base and apply what the user gives.

        Args:
            base: a config below `configs/`, without ".py".
            overrides: `key=value` of a command line.

        Raises:
            ConfigError: an override cannot be applied.
        """
        self.base = base
        self.model_of: str | None = None
        self.diameter: float | None = None
        loaded = LazyConfig.load(str(config_folder() / f"{base}.py"))
        self._given = [key for key, _ in find_changes(loaded, overrides)]
        self.cfg: DictConfig = apply_overrides(loaded, overrides)
        self._overrides = list(overrides)
        self.decisions: list[Decision] = []

    def decide(self, values: Mapping[str, Any], reason: str) -> None:
        """Set values, but for those that the user gives.

        Args:
            values: by dotted key; plain values that Python can write.
            reason: a sentence with the figure that it follows from.
        """
        given = [key for key in values if self.is_given(key)]
        kept = {key: value for key, value in values.items() if key not in given}
        for key, value in kept.items():
            OmegaConf.update(self.cfg, key, value, merge=False)
        self.decisions.append(Decision(kept, reason, given))

    def take_model(self, source: str) -> None:
        """Take another model than that of the base.

        Args:
            source: name of a shipped config, or a checkpoint that describes itself, as a file or source of weights.
        """
        self.model_of = source
        described = get_config(source) if source in list_configs() else described_config(source)
        self.cfg.model, self.diameter = described.model, _learned_diameter(described)
        apply_overrides(self.cfg, [entry for entry in self._overrides if re.match(r"\s*model[.=]", entry)])

    def is_given(self, key: str) -> bool:
        """Whether the user gives this key, or one above or below it."""
        return any(key == own or key.startswith(f"{own}.") or own.startswith(f"{key}.") for own in self._given)

    def get(self, key: str) -> Any:
        """A value as it is now."""
        return OmegaConf.select(self.cfg, key)

    def lines(self) -> list[str]:
        """The decisions, a line each, for people."""
        return [
            decision.reason + (f" ({', '.join(decision.given)} as given.)" if decision.given else "")
            for decision in self.decisions
        ]

    def write(self, path: Path, about: Sequence[str]) -> None:
        """Write the config as a LazyConfig.

        Args:
            path: of the file.
            about: lines at its head.

        Raises:
            ConfigError: a value cannot be.
        """
        check_config(self.cfg)
        lines = [f"# {line}" for line in about]
        lines += _imports(self.base, self.model_of)
        for decision in self.decisions:
            if not decision.values:
                continue
            words = " ".join(decision.reason.split())
            wrapped = textwrap.wrap(words, 116, break_long_words=False, break_on_hyphens=False)
            lines += [f"# {line}" for line in wrapped]
            lines += [f"{_python(key)} = {_literal(value)}" for key, value in decision.values.items()]
            lines.append("")
        if self._given:
            lines.append("# As given.")
            lines += [f"{_python(key)} = {_literal(self.get(key))}" for key in dict.fromkeys(self._given)]
            lines.append("")
        write_atomically(path, "\n".join(lines).encode())


def _imports(base: str, model_of: str | None) -> list[str]:
    """Import lines of a config; a model of its own replaces that of the base."""
    parts = ["dataloader", "dataset", "lr_multiplier", *["model"] * (model_of is None), "optimizer", "train"]
    lines = [f"from maskrcnn_plus.configs.{base.replace('/', '.')} import {', '.join(parts)}", ""]
    if model_of is None:
        return lines
    if model_of in list_configs():
        return [lines[0], f"from maskrcnn_plus.configs.{model_of.replace('/', '.')} import model", ""]
    start = "from maskrcnn_plus.checkpoints.description import described_config"
    return [start, *lines, f"model = described_config({model_of!r}).model", ""]


def _learned_diameter(cfg: DictConfig) -> float | None:
    """The diameter that a config's evaluation brings objects to; None where it does not."""
    name = ScaleToDiameter.__qualname__
    for each in OmegaConf.select(cfg, "dataloader.test.mapper.augmentations") or []:
        if OmegaConf.is_dict(each) and str(getattr(each["_target_"], "__qualname__", each["_target_"])).endswith(name):
            return float(each.diameter)
    return None


def _python(key: str) -> str:
    """A dotted key as Python reaches it."""
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", key)


def _literal(value: Any) -> str:
    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return repr(list(value) if isinstance(value, tuple) else value)
