"""Command-line overrides of a LazyConfig, `key=value`, with misspelt keys refused."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Sequence

from detectron2.config import LazyConfig
from detectron2.config.instantiate import locate
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Override entries of `cfg` in place, in Hydra's syntax.

    Args:
        cfg: a LazyConfig.
        overrides: "a.b=c" strings. A key must exist in the config, or be an argument of the callable that its parent
            describes (`model.roi_heads.mask_on=...`).

    Raises:
        ValueError: for an entry without "=" or with an unknown key, with the nearest valid keys, or a malformed value.
    """
    for entry in overrides:
        key, equals, _ = entry.partition("=")
        if not equals:
            raise ValueError(f"Override {entry!r} has no '=': write key=value, e.g. train.max_iter=1000.")
        _check_key(cfg, key.strip())
    try:
        return LazyConfig.apply_overrides(cfg, list(overrides))
    except HydraException as error:
        raise ValueError(f"An override cannot be read: {error}") from error


def _check_key(cfg: DictConfig, key: str) -> None:
    node = cfg
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(node, ListConfig) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, DictConfig) and part in node:
            node = node._get_node(part) if OmegaConf.is_interpolation(node, part) else node[part]
        elif isinstance(node, DictConfig) and depth == len(parts) - 1 and part in _arguments(node):
            return
        else:
            raise ValueError(_unknown(cfg, key))


def _arguments(node: DictConfig) -> list[str]:
    """Names of the keyword arguments of the callable that a LazyCall node describes."""
    target = node.get("_target_")
    if target is None:
        return []
    function: Callable = locate(target) if isinstance(target, str) else target
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _unknown(cfg: DictConfig, key: str) -> str:
    valid = list(_keys(cfg))
    near = difflib.get_close_matches(key, valid, n=4, cutoff=0.6)
    last = key.rsplit(".", 1)[-1]
    near += [k for k in valid if k.rsplit(".", 1)[-1] == last and k not in near][: 4 - len(near)]
    hint = f"Did you mean {' or '.join(near)}?" if near else f"The top-level keys are {', '.join(cfg)}."
    return f"Unknown config key {key!r}. {hint}"


def _keys(node: DictConfig | ListConfig, prefix: str = "") -> Iterator[str]:
    """All dotted keys of a config."""
    names = node if isinstance(node, DictConfig) else range(len(node))
    for name in names:
        key = f"{prefix}{name}"
        yield key
        child = None if OmegaConf.is_interpolation(node, name) else node._get_node(name)
        if isinstance(child, DictConfig | ListConfig) and not child._is_none():
            yield from _keys(child, key + ".")
