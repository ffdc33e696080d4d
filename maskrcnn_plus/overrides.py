"""Command-line overrides of a LazyConfig, `key=value`, with misspelt keys refused."""

from __future__ import annotations

import copy
import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from detectron2.config.instantiate import locate
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from maskrcnn_plus.errors import ConfigError, first_line

MAX_DEPTH = 20
# Text that means nothing else: a path with letters of any language.
_PLAIN = re.compile(r"""[^\[\](){}'",~=][^\[\](){}'",]*""")


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Override entries of `cfg` in place, in Hydra's syntax.

    Args:
        cfg: a LazyConfig.
        overrides: "a.b=c" strings. A key must exist in the config, or be an argument of the callable that its parent
            describes (`model.roi_heads.mask_on=...`), of the one that overrides before it have put there. A mapping
            changes those keys that it has: `train.amp={enabled: true}`.

    Raises:
        ConfigError: for an entry without "=", with an unknown key (with the nearest valid ones), a malformed value, or
            one of another kind than the config has: a group of keys stays one, a list is no mapping. The config is
            unchanged then. Also for a reference to nothing (`train.seed=${nothing}`).
    """
    changes = find_changes(cfg, overrides)
    for change in changes:
        _update(cfg, *change)
    for key, value in changes:
        try:
            OmegaConf.select(cfg, key, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}={shortened(value)}: {first_line(error)}.", key) from error
    return cfg


def find_changes(cfg: DictConfig, overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """The keys and values that overrides change in `cfg`, which stays as it is; see `apply_overrides`."""
    changes, changed = [], copy.deepcopy(cfg)
    for entry in overrides:
        key, equals, _ = entry.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(f"Override {entry!r} has no '=': write key=value, e.g. train.max_iter=1000.")
        try:
            _check_key(changed, key)
            for change in _changes(changed, key, _parse(entry)):
                _update(changed, *change)
                changes.append(change)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{shortened(entry)}: {first_line(error)}", key) from error
    return changes


def _update(cfg: DictConfig, key: str, value: Any) -> None:
    OmegaConf.update(cfg, key, value, merge=isinstance(value, Mapping))


def _parse(entry: str) -> Any:
    """The value of "key=value"."""
    key, _, text = (part.strip() for part in entry.partition("="))
    if text == "None":
        return None
    try:
        override = OverridesParser.create().parse_override(f"key={text}")  # its own may be one that Hydra cannot read
        value = override.value()
    except (HydraException, RecursionError) as error:
        if _PLAIN.fullmatch(text):
            return text
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else first_line(error)[:120]
        raise ConfigError(
            f"{shortened(entry)}: the value cannot be read ({reason}). Quote text that has spaces, commas, brackets or "
            "quotes: 'key=\"a, b\"'.",
            key,
        ) from error
    if override.is_sweep_override():
        raise ConfigError(f"{shortened(entry)}: one value is needed; a list stands in brackets: {key}=[a, b].", key)
    if _depth(value) > MAX_DEPTH:
        raise ConfigError(f"{shortened(entry)}: the value is nested too deeply.", key)
    return value


def _changes(cfg: DictConfig, key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The changes of an override: one, or one a key where a mapping changes a mapping."""
    _check_key(cfg, key)
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    has = last in node if isinstance(node, DictConfig) else True
    interpolated = has and OmegaConf.is_interpolation(node, int(last) if isinstance(node, ListConfig) else last)
    old = None if interpolated or not has else OmegaConf.select(cfg, key)
    if isinstance(value, Mapping):
        if isinstance(old, ListConfig):
            raise ConfigError(f"{key}={shortened(value)}: a list is needed, as the config has: {shortened(old)}.", key)
        if isinstance(old, DictConfig) and ("_target_" in old or _is_group(cfg, key)):
            for name in sorted(value, key=lambda name: name != "_target_"):  # first, as the others are arguments of it
                yield from _changes(cfg, f"{key}.{name}", value[name])
            return
    elif isinstance(old, DictConfig) and "_target_" in old and isinstance(value, int | float):
        raise ConfigError(f"{key}={shortened(value)}: a component is needed, or one of its keys: {key}.KEY=...", key)
    elif isinstance(old, DictConfig) and _is_group(cfg, key):
        raise ConfigError(f"{key}={shortened(value)}: {key} is a group of keys: {', '.join(map(str, old))}.", key)
    yield key, value


def _is_group(cfg: DictConfig, key: str) -> bool:
    """Whether a mapping of the config is a group of keys, as `train`, and no callable or argument of one."""
    parts = key.split(".")
    above = [OmegaConf.select(cfg, ".".join(parts[: depth + 1])) for depth in range(len(parts))]
    return all(isinstance(node, DictConfig) and "_target_" not in node for node in above)


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
            raise ConfigError(_unknown(cfg, key), key)


def _arguments(node: DictConfig) -> list[str]:
    """Names of the keyword arguments of the callable that a LazyCall node describes.

    Those that a constructor takes as `**kwargs` are taken to be for that of the next class.
    """
    target = node.get("_target_")
    if target is None:
        return []
    names = []
    try:
        function: Callable = locate(target) if isinstance(target, str) else target
        bases = function.__mro__[1:] if inspect.isclass(function) else ()
        for each in (function, *(base.__init__ for base in bases)):
            parameters = inspect.signature(each).parameters.values()
            names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
            if not any(p.kind == p.VAR_KEYWORD for p in parameters):
                break
    except (TypeError, ValueError, ImportError):
        pass
    return [name for name in names if name != "self"]


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


def _depth(value: Any, most: int = MAX_DEPTH + 1) -> int:
    """How deeply lists and mappings are nested in a value; what is deeper than `most` is not looked at."""
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return max((1 + _depth(child, most - 1) for child in children), default=0) if most else 0


def shortened(value: Any) -> str:
    """A value as text of at most 80 characters."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
