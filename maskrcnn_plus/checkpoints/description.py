"""What a checkpoint says of itself: the config that it was trained with, its classes, pixels, data and figures.

It lies in the file under `DESCRIPTION` as plain data. The config is a tree of dicts, lists, texts, numbers and None,
with interpolations as they are written; a class or function in it is {"_callable_": dotted name}, the `_target_` of a
component its dotted name. Of what is read back only parts of an allow-list are built (`checkpoints/parts.py`).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib
import importlib.metadata
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from detectron2.config import instantiate
from detectron2.config.instantiate import locate
from detectron2.utils.registry import _convert_target_to_string
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from maskrcnn_plus.checkpoints.model_size import check_model_size
from maskrcnn_plus.checkpoints.parts import FORBIDDEN, find_part
from maskrcnn_plus.checkpoints.sources import local_path
from maskrcnn_plus.config_rules import check_config
from maskrcnn_plus.data.classes import resolve_classes
from maskrcnn_plus.errors import ConfigError
from maskrcnn_plus.input_channels import follow_dataset_channels
from maskrcnn_plus.model_folder import ModelFolderError, read_model_folder
from maskrcnn_plus.overrides import apply_overrides
from maskrcnn_plus.weights.conversion import WeightsError
from maskrcnn_plus.weights.files import read_file

__all__ = ["DESCRIPTION", "NoDescriptionError", "describe", "described_config", "read_description"]

DESCRIPTION = "description"
"""Key of a checkpoint."""

VERSION = 1
CALLABLE, OTHER = "_callable_", "_object_"
NEEDED = ("model", "dataloader.test.mapper")
"""What a prediction builds of a config."""

_PACKAGES = ("maskrcnn_plus", "detectron2", "torch", "torchvision", "timm", "numpy")
_PIXEL_RULES = ("percentiles", "channels", "projection", "scale")
_RESOLVERS = ("oc.select", "linear_lr", "maskrcnn_plus.num_classes", "maskrcnn_plus.num_unused_coco_ids")
_REFERENCE = re.compile(r"\$\{[\w.\[\]-]*\}")
_CALL = re.compile(rf"\$\{{({'|'.join(map(re.escape, _RESOLVERS))}):[\w.\[\], \0-]*\}}")
_DEPTH, _MOST_NODES, _LONGEST = 40, 20_000, 2000
_LEFT_OUT = object()


class NoDescriptionError(WeightsError):
    """Weights that do not say which config they are for."""


def describe(
    cfg: DictConfig,
    class_names: Sequence[str] | None = None,
    category_ids: Sequence[int | float | str] | None = None,
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a checkpoint of a training says of itself, as plain data.

    Args:
        cfg: of the training, with its classes and channels settled.
        class_names, category_ids: of the model, as `Checkpointer` takes them.
        data: about the training data, plain.

    Returns:
        "version", "config", "class_names", "category_ids", "pixels", "data", "packages", and under "unknown" the names
        of parts of the user's own, with which nobody can build the model from the description.
    """
    config = _plain(cfg)
    return {
        "version": VERSION,
        "config": config,
        "unknown": _unknown(config),
        "class_names": None if class_names is None else [str(name) for name in class_names],
        "category_ids": None if category_ids is None else list(category_ids),
        "pixels": _pixels(cfg),
        "data": dict(data or {}),
        "packages": {name: version for name in _PACKAGES if (version := package_version(name))},
    }


def _unknown(config: dict[str, Any]) -> list[str]:
    """What a prediction needs of a plain config and cannot be built from it."""
    try:
        return _refused(restore_config(config))
    except (ConfigError, OmegaConfBaseException, RecursionError) as error:
        return [str(error).partition("\n")[0]]


def read_description(source: str) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Args:
        source: a file, what `local_path` knows, or the folder of an exported model.

    Raises:
        NoDescriptionError: it says nothing of itself.
        WeightsError: it cannot be read, or was written by another version.
    """
    if os.path.isdir(source):
        description = _exported_description(source)
    else:
        description = read_file(local_path(source)).get(DESCRIPTION)
    if not isinstance(description, dict) or not isinstance(description.get("config"), dict):
        raise NoDescriptionError(
            f"{source} does not say which config it was trained with: it is older than that, or of another program. "
            "Give the config too (--config-file, or Predictor(config, weights))."
        )
    if description.get("version") != VERSION:
        raise WeightsError(
            f"{source} describes itself in a form of another version of maskrcnn_plus ({description.get('version')!r}, "
            f"here {VERSION}). Give the config too (--config-file), or update the package."
        )
    return description


def _exported_description(folder: str) -> Any:
    text = read_model_folder(folder, "hybrid", check_files=False).details.get(DESCRIPTION)
    try:
        return json.loads(text)  # numbers that are infinite or NaN included, which model.json itself cannot hold
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelFolderError(f"{folder}: details.description of its model.json is damaged: {error}") from error


def described_config(source: str, overrides: Sequence[str] = (), trusted: Sequence[str] = ()) -> DictConfig:
    """The config of a checkpoint, from what it says of itself; none of its parts is built yet.

    Args:
        source: as for `read_description`.
        overrides: "key=value" of a command line, see `apply_overrides`.
        trusted: names of modules of one's own, whose classes and functions may be parts too.

    Returns:
        A config for `Predictor`. Building a part of it that is not on the allow-list is a ConfigError.

    Raises:
        WeightsError: as of `read_description`, or it has parts that a prediction needs and that must not be built.
        ConfigError: an override or a value cannot be.
    """
    description = read_description(source)
    try:
        cfg = restore_config(description["config"], trusted)
        if OmegaConf.select(cfg, "train.device") is not None:
            cfg.train.device = "auto"  # that of the training may not be here
        refused = _refused(cfg)
        check_config(cfg)
        if not refused:
            tried = copy.deepcopy(cfg)
            _try_out(tried)
    except (ValueError, TypeError, AttributeError, OmegaConfBaseException, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"{source} is refused: its config cannot be taken ({reason}).") from error
    if refused:
        raise WeightsError(
            f"{source} was trained with parts that are not built from a checkpoint: {', '.join(refused[:5])}. If you "
            "trust them, give the config too (--config-file), which imports them."
        )
    check_model_size(tried, local_path(source))
    if overrides:
        check_config(apply_overrides(cfg, overrides))
    return cfg


def _try_out(cfg: DictConfig) -> None:
    """Do what a prediction does with a config before it builds the model, in place, so that what is odd shows here."""
    follow_dataset_channels(cfg)
    resolve_classes(cfg, splits=())
    float(OmegaConf.select(cfg, "dataset.score_threshold") or 0)
    int(OmegaConf.select(cfg, "model.roi_heads.num_classes") or 0)


def restore_config(plain: Any, trusted: Sequence[str] = ()) -> DictConfig:
    """A LazyConfig of a description's config, whose targets are those of the allow-list, or raise when they are called.

    Raises:
        ConfigError: it is not what `describe` makes.
    """
    if not isinstance(plain, dict):
        raise ConfigError("its config is no mapping")
    return OmegaConf.create(_restored(plain, trusted, 0), flags={"allow_objects": True})


def _plain(node: DictConfig | ListConfig) -> Any:
    """A config as plain data."""
    if isinstance(node, ListConfig):
        return [value for index in range(len(node)) if (value := _plain_entry(node, index)) is not _LEFT_OUT]
    if "_target_" in node and node._target_ in (locate, "detectron2.utils.registry.locate"):
        return {CALLABLE: str(node.name)}
    entries = {key: _plain_entry(node, key) for key in node}
    kind = OmegaConf.get_type(node)
    if dataclasses.is_dataclass(kind):
        entries["_target_"] = _name(kind)
    return {key: value for key, value in entries.items() if value is not _LEFT_OUT}


def _plain_entry(node: DictConfig | ListConfig, key: str | int) -> Any:
    """The value of a key; `_LEFT_OUT` for one that cannot be resolved."""
    if OmegaConf.is_interpolation(node, key):
        text = node._get_node(key)._value()
        if _is_harmless(text):
            return text
    try:
        value = node[key]
    except OmegaConfBaseException:
        return _LEFT_OUT
    if isinstance(value, DictConfig | ListConfig):
        return None if value._is_none() else _plain(value)
    if isinstance(value, str | int | float | None):
        return value
    if hasattr(value, "__qualname__") and isinstance(value.__module__, str):
        name = _name(value)
        return name if key == "_target_" else {CALLABLE: name}
    kind = type(value)
    names = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else None
    if names := names or getattr(kind, "_fields", None):  # ShapeSpec is one or the other
        values = OmegaConf.create({name: getattr(value, name) for name in names}, flags={"allow_objects": True})
        return {"_target_": _name(kind), **_plain(values)}
    return {OTHER: kind.__qualname__}


def _restored(value: Any, trusted: Sequence[str], depth: int) -> Any:
    if depth > _DEPTH:
        raise ConfigError("it is nested too deeply")
    if isinstance(value, list):
        return [_restored(item, trusted, depth + 1) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str | int) for key in value):
            raise ConfigError("a key is neither text nor a number")
        if CALLABLE in value or OTHER in value:
            return _part(value.get(CALLABLE, value.get(OTHER)), trusted)
        entries = {key: _restored(item, trusted, depth + 1) for key, item in value.items() if key != "_target_"}
        if "_target_" not in value:
            return entries
        if isinstance(entries.get("weights"), str):
            entries["weights"] = ""  # all weights are the checkpoint's
        forbidden = sorted(FORBIDDEN & entries.keys())
        target = _refuse(f"{value['_target_']} with {forbidden[0]}") if forbidden else _part(value["_target_"], trusted)
        return {"_target_": target, **entries}
    if isinstance(value, str):
        if not _is_harmless(value):
            raise ConfigError(f"{value[:80]!r} is an interpolation that a checkpoint must not have")
        return value
    if value is None or isinstance(value, bool | int | float):
        return value
    raise ConfigError(f"it holds a {type(value).__name__}")


def _is_harmless(text: Any) -> bool:
    """Whether a text has no interpolations but references to keys and calls of known resolvers."""
    text = str(text)
    if "${" in text and len(text) > _LONGEST:
        return False
    while "${" in text:
        shorter = _CALL.sub("\0", _REFERENCE.sub("\0", text))
        if shorter == text:
            return False
        text = shorter
    return True


def _part(name: Any, trusted: Sequence[str]) -> Callable[..., Any] | str:
    try:
        part = find_part(name, trusted)
    except ConfigError:
        return _refuse(str(name)[:100])
    return name if part is dict else part  # which OmegaConf cannot hold


def _refuse(name: str) -> Callable[..., Any]:
    """Takes the place of a part that must not be built."""

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise ConfigError(f"{name!r} is not built from a checkpoint. Give the config too (--config-file).")

    refused.refused_name = name
    return refused


def _refused(cfg: DictConfig) -> list[str]:
    """Names of what a prediction needs of a restored config and must not be built."""
    values = list(itertools.islice(_values([OmegaConf.select(cfg, key) for key in NEEDED]), _MOST_NODES + 1))
    if len(values) > _MOST_NODES:
        raise ConfigError("its keys refer to one another without end")
    return sorted({value.refused_name for value in values if hasattr(value, "refused_name")})


def _values(waiting: list[Any]) -> Iterator[Any]:
    """All values below some nodes, and the nodes, with those that interpolations lead to."""
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, DictConfig | ListConfig) and not node._is_none():
            for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
                with contextlib.suppress(OmegaConfBaseException):  # whoever builds it will say so
                    waiting.append(node[key])


def _pixels(cfg: DictConfig) -> dict[str, Any]:
    """How an image becomes the network's input, for people and other programs; the config has the same."""
    values: dict[str, Any] = {}
    for part, names in (("model", ("input_format", "pixel_mean", "pixel_std")), ("dataset", _PIXEL_RULES)):
        for name in names:
            with contextlib.suppress(OmegaConfBaseException):  # a model of the user's may have none
                value = instantiate(OmegaConf.select(cfg, f"{part}.{name}"))
                values[name] = list(value) if isinstance(value, ListConfig | list | tuple) else value
    return {name: value for name, value in values.items() if value is not None}


@functools.cache
def _name(part: Any) -> str:
    """Dotted name of a class or function, the shortest that finds it, as `LazyConfig.save` writes it."""
    return _convert_target_to_string(part)


def package_version(package: str) -> str:
    """Version of an installed package; "" where it has none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(package), "__version__", ""))
