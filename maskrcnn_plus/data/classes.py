"""The one place where the classes of data, config and weights meet.

Names decide. They come from `dataset.thing_classes` where the config gives them, else from the weights that are used as
they are, else from the training data. The numbers of classes in the config follow from the names, and data sets whose
files number the classes otherwise are matched by name.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from detectron2.config import instantiate
from detectron2.config.instantiate import locate
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig, ListConfig, OmegaConf

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.coco import class_key, coco_categories, map_categories, register_coco, used_names

__all__ = ["Classes", "resolve_classes"]

logger = logging.getLogger(__name__)

_NAMES, _NUMBER = "dataset.thing_classes", "dataset.num_classes"
DATA_SET_KEYS = {
    "train": ("dataloader.train.dataset.dataset.names", "dataloader.train.dataset.names"),
    "test": ("dataloader.test.dataset.names", "dataloader.test.dataset.dataset.names"),
}
"""Where a config names the data set of a split."""

_SHOWN = 10


class Classes(NamedTuple):
    """The classes of a model.

    Attributes:
        names: in the order of its rows.
        category_ids: their ids in the COCO file of the training data; None where there was none.
    """

    names: list[str]
    category_ids: list[int | float | str] | None = None


def resolve_classes(
    cfg: DictConfig, stored: Classes | None = None, splits: Sequence[str] = ("train", "test")
) -> Classes | None:
    """Decide on the classes and write them into a config, in place, before its model is built.

    `dataset.thing_classes` counts as given unless it is an interpolation, as the default of the COCO configs is: that
    one holds for data with just these categories. Categories without objects are no classes unless they are given.

    Args:
        cfg: a LazyConfig.
        stored: the classes of the weights that the model gets as a whole, to evaluate or predict; None to train.
        splits: "train" and "test": the data sets that will be used, whose classes must be among the model's.

    Returns:
        The classes; None where neither config nor weights nor data name any.

    Raises:
        DataError: numbers and names in the config disagree, or a data set cannot be read or has objects of other
            classes.
    """
    configured = _get_config_names(cfg)
    default = None if configured is not None else _default_names(cfg)
    data = {split: list(_data_sets(cfg, split)) for split in splits}
    if configured is not None:
        names, source = configured, _NAMES
    elif stored is not None:
        names, source = list(stored.names), "the weights"
    else:
        names, source = _get_data_names(data, default)
    number = len(names) if names is not None else OmegaConf.select(cfg, "model.roi_heads.num_classes")
    if names is not None:
        others = f", not the config's default of {len(default)}" if default and names != default else ""
        logger.info(f"{number} classes, of {source}{others}: {_listed(names)}")
        _write(cfg, names, source)
    ids = _stored_ids(names, stored) if names is not None and stored is not None else None
    for split, entries in data.items():
        for entry in entries:
            found = entry.check(names, number)
            ids = ids or (found if split == "train" else None)
    return None if names is None else Classes(names, ids)


class _CocoData(NamedTuple):
    """A COCO file that the config registers by itself, which is read without registering it."""

    name: str
    json_file: str

    def names(self, default: Sequence[str] | None) -> list[str]:
        """Names of the classes with objects, or the default where the file has just these categories."""
        categories = self._categories()
        if default is not None and {class_key(c.name) for c in categories} == set(map(class_key, default)):
            return [str(name) for name in default]
        return used_names(categories)

    def check(self, names: list[str], number: int | None) -> list[int | float | str]:
        """Ids of the classes in the file."""
        categories = self._categories()
        try:
            return map_categories(categories, names, self.json_file).category_ids
        except DataError as error:
            raise DataError(f"Data set '{self.name}': {error}") from error

    def _categories(self) -> list:
        try:
            return coco_categories(self.json_file)
        except DataError as error:
            raise DataError(f"Data set '{self.name}': {error} Set dataset.* of the config.") from error


class _RegisteredData(NamedTuple):
    """A data set of Detectron2's catalog, whose annotations are numbered already."""

    name: str

    def names(self, default: Sequence[str] | None) -> list[str] | None:
        """Names of the classes, of which some data sets know only when they are read."""
        if self.name not in DatasetCatalog:
            return None
        if not hasattr(MetadataCatalog.get(self.name), "thing_classes"):
            DatasetCatalog.get(self.name)
        names = MetadataCatalog.get(self.name).get("thing_classes")
        return None if names is None else [str(name) for name in names]

    def check(self, names: list[str] | None, number: int | None) -> list[int | float | str] | None:
        """Ids of the classes in the file where they are known; a data set without names gets them."""
        own = self.names(None)
        if own is None:
            if self.name in DatasetCatalog and number:
                # So that the check refuses a category beyond, which the model would take for the background.
                MetadataCatalog.get(self.name).thing_classes = names or [f"class {k}" for k in range(number)]
            return None
        keys = [class_key(name) for name in own]
        is_one = len(own) == len(names) == 1
        if not is_one and keys != [class_key(name) for name in names[: len(own)]]:
            raise DataError(
                f"Data set '{self.name}' has the classes {_listed(own)}, in this order, but the model "
                f"{_listed(names)}. Correct {_NAMES}; register_coco matches those of a COCO file by name."
            )
        own_ids = MetadataCatalog.get(self.name).get("thing_dataset_id_to_contiguous_id") or {}
        of_index = {index: own_id for own_id, index in reversed(own_ids.items())}  # the first of several
        ids = [of_index.get(index) for index in range(len(names))]
        return None if None in ids else ids


def _get_config_names(cfg: DictConfig) -> list[str] | None:
    """The classes that somebody has written into the config."""
    names = OmegaConf.select(cfg, _NAMES)
    if names is None or OmegaConf.is_interpolation(cfg.dataset, "thing_classes"):
        return None
    names = [names] if isinstance(names, str) else [str(name) for name in names]
    if not names or len({class_key(name) for name in names}) < len(names):
        raise DataError(f"{_NAMES}={names}: it must name each class once, and at least one.")
    return names


def _default_names(cfg: DictConfig) -> list[str] | None:
    """The classes that the config has unless the data has others; none where its number is set to another one."""
    names = OmegaConf.select(cfg, _NAMES)
    if names is None:
        return None
    if OmegaConf.select(cfg, _NUMBER) not in (None, len(names)):
        cfg.dataset.thing_classes = None
        return None
    return [str(name) for name in names]


def _data_sets(cfg: DictConfig, split: str) -> Iterator[_CocoData | _RegisteredData]:
    """The data sets of a split."""
    found = (OmegaConf.select(cfg, key) for key in DATA_SET_KEYS[split])
    names = next((value for value in found if value is not None), [])
    for node in names if isinstance(names, ListConfig | list | tuple) else [names]:
        if _is_register_coco(node):
            yield _CocoData(str(node.name), str(node.json_file))
        else:
            yield _RegisteredData(node if isinstance(node, str) else instantiate(node))


def _is_register_coco(node: Any) -> bool:
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    with contextlib.suppress(ImportError):  # it is told with its key where it is built
        return (locate(target) if isinstance(target, str) else target) is register_coco
    return False


def _get_data_names(
    data: dict[str, list[_CocoData | _RegisteredData]], default: list[str] | None
) -> tuple[list[str] | None, str]:
    """Names of the classes of the first split that has any, and where they are from."""
    for split, entries in data.items():
        names: dict[str, str] = {}
        for entry in entries:
            for name in entry.names(default) or ():
                names.setdefault(class_key(name), name)
        if names:
            return list(names.values()), "the training data" if split == "train" else "the test data"
    return default, f"the default of {_NAMES}"


def _write(cfg: DictConfig, names: list[str], source: str) -> None:
    """Set the names and the number, and refuse numbers that somebody set otherwise."""
    OmegaConf.update(cfg, _NAMES, names, force_add=True)
    if "num_classes" not in cfg.dataset or OmegaConf.is_interpolation(cfg.dataset, "num_classes"):
        OmegaConf.update(cfg, _NUMBER, len(names), force_add=True)
    for node in _nodes(cfg):
        if _is_register_coco(node) and not OmegaConf.is_interpolation(node, "thing_classes"):
            node.thing_classes = names
    numbers = {_NUMBER: cfg.dataset.num_classes}
    for node in _nodes(cfg.get("model")):
        if node.get("num_classes") is not None and "backbone" not in (key := node._get_full_key("num_classes")):
            numbers[key] = node.num_classes
    for key, number in numbers.items():
        is_agnostic = number == 1 and key.startswith("model.") and key != "model.roi_heads.num_classes"
        if number != len(names) and (not is_agnostic or ".box_predictor" in key):
            remedy = "leave it out" if key == _NUMBER else f"set it to ${{{_NUMBER}}}"
            raise DataError(
                f"The numbers of classes disagree: {len(names)} classes of {source} ({_listed(names)}), but "
                f"{key}={number}. The number follows from the names: {remedy}, or correct {_NAMES}."
            )


def _nodes(cfg: Any) -> Iterator[DictConfig]:
    """All dicts of a config, without those that interpolations lead to."""
    if not isinstance(cfg, DictConfig | ListConfig) or cfg._is_none() or cfg._is_interpolation():
        return
    if isinstance(cfg, DictConfig):
        yield cfg
    for key in cfg if isinstance(cfg, DictConfig) else range(len(cfg)):
        yield from _nodes(cfg._get_node(key))


def _stored_ids(names: list[str], stored: Classes) -> list[int | float | str] | None:
    """The ids of the weights' classes for the same classes in the order of `names`."""
    of_key = dict(zip(map(class_key, stored.names), stored.category_ids or (), strict=False))
    ids = [of_key.get(class_key(name)) for name in names]
    return None if None in ids else ids


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
