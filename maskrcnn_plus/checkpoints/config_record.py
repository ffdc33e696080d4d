"""The config of a training as plain data in its checkpoints, so that a resumed run can say what was changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

__all__ = ["changed_keys", "flatten_config"]


def flatten_config(cfg: DictConfig) -> dict[str, Any]:
    """Dotted key -> value of all leaves, interpolations resolved.

    Numbers, booleans, strings and None are kept; of anything else its name or text. Keys that cannot be resolved are
    left out, as by Detectron2, which resolves a key when it is used.
    """
    return {key: _plain(value) for key, value in _leaves(cfg, "")}


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two configs of `flatten_config`: "key old -> new", in the order of the keys of both."""
    return [
        f"{key} {_short(before.get(key))} -> {_short(now.get(key))}"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]


def _leaves(node: DictConfig | ListConfig, prefix: str) -> Iterator[tuple[str, Any]]:
    names = list(node) if isinstance(node, DictConfig) else range(len(node))
    for name in names:
        try:
            value = node[name]
        except OmegaConfBaseException:
            continue
        if isinstance(value, DictConfig | ListConfig):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(value: Any) -> Any:
    if isinstance(value, str | int | float | None):
        return value
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name else type(value).__qualname__


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
