"""Building the parts of a config, where what cannot be built is named by its key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config.instantiate import instantiate, locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from maskrcnn_plus.errors import ConfigError, UserError, first_line


def build(cfg: DictConfig, key: str, **arguments: Any) -> Any:
    """Detectron2's `instantiate` of the part of a config under a key.

    Args:
        cfg: a LazyConfig.
        key: dotted, e.g. "dataloader.train".
        **arguments: objects that take the place of arguments of that part, which are then not built.

    Raises:
        ConfigError: there is nothing under the key, or the constructor of a part of it raised an error, which the
            message gives with the part's key.
        UserError: a constructor raised it; its message needs no more.
    """
    try:
        node = OmegaConf.select(cfg, key)
    except OmegaConfBaseException as error:
        raise ConfigError(f"config key `{key}` cannot be read: {first_line(error)}", key) from error
    if node is None:
        raise ConfigError(f"The config has no `{key}`, which is needed here: please add it.", key)
    return _build(node, key, arguments)


def _build(node: Any, key: str, extra: Mapping[str, Any] | None = None) -> Any:
    extra = extra or {}
    if isinstance(node, ListConfig):
        items = [_build(item, f"{key}.{index}") for index, item in enumerate(node)]
        return ListConfig(items, flags={"allow_objects": True})
    try:
        if not (isinstance(node, DictConfig) and "_target_" in node):
            return instantiate(node)  # which makes dataclasses of what OmegaConf keeps of them, in Detectron2's head
        parts = {name: node[name] for name in node if name not in extra}
    except OmegaConfBaseException as error:
        raise ConfigError(f"config key `{key}` cannot be built: {first_line(error)}", key) from error
    arguments = {name: _build(part, f"{key}.{name}") for name, part in parts.items()}
    target = arguments.pop("_target_")
    try:
        return (locate(target) if isinstance(target, str) else target)(**arguments, **extra)
    except UserError:
        raise
    except Exception as error:  # whatever a constructor makes of the config's values
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        text = " ".join(line.strip() for line in str(error).splitlines())  # Detectron2's and OmegaConf's have several
        detail = f"{kind}{text}".rstrip(": ")
        raise ConfigError(f"config key `{key}` cannot be built: {detail}", key) from error
