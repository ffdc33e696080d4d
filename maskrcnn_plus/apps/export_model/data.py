"""The images that an export is calibrated on and judged by: those of the training's config, or others."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig, OmegaConf

from maskrcnn_plus.apps.evaluate import EvaluationData
from maskrcnn_plus.data import register_coco, register_folder, register_label_maps
from maskrcnn_plus.data.check import DataError, check_dataset
from maskrcnn_plus.data.classes import DATA_SET_KEYS
from maskrcnn_plus.data.formats.files import list_tree
from maskrcnn_plus.data.images import IMAGE_SUFFIXES
from maskrcnn_plus.data.synthetic import register_synthetic_cells

__all__ = ["choose_evenly", "folder_images", "read_config_data"]

_REGISTER: dict[str, Callable[..., str]] = {
    each.__name__: each for each in (register_coco, register_folder, register_label_maps, register_synthetic_cells)
}


def read_config_data(cfg: DictConfig, split: str) -> EvaluationData:
    """The training or validation images of a config, where they are still on this machine.

    Args:
        cfg: a LazyConfig, or that of a checkpoint, which may name data sets and reads none: here the functions of this
            package that register data are called by their names.
        split: "train" or "test".

    Raises:
        DataError: they are not there, or the config does not say which they are; it says why.
    """
    node = next((found for key in DATA_SET_KEYS[split] if (found := OmegaConf.select(cfg, key)) is not None), None)
    if node is None:
        raise DataError("the config does not name the images")
    if isinstance(node, str):
        if node not in DatasetCatalog:
            raise DataError(f"the config's data set {node!r} is not registered here")
        return _read(node, split)
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    name = getattr(target, "refused_name", getattr(target, "__name__", str(target))).rpartition(".")[2]
    if name not in _REGISTER:
        raise DataError(f"the config does not name one data set that maskrcnn_plus reads ({name})")
    arguments = {str(key): value for key, value in OmegaConf.to_container(node, resolve=True).items()}
    arguments = {key: value for key, value in arguments.items() if key not in ("_target_", "name")}
    registered = f"export:{split}:{secrets.token_hex(4)}"
    try:
        _REGISTER[name](name=registered, **arguments)
        return _read(registered, split)
    except (TypeError, OSError, ValueError) as error:
        raise DataError(f"the config's images cannot be read ({error})") from error
    finally:
        with contextlib.suppress(KeyError):
            DatasetCatalog.remove(registered)
            MetadataCatalog.remove(registered)


def _read(name: str, split: str) -> EvaluationData:
    records = DatasetCatalog.get(name)
    names = list(MetadataCatalog.get(name).get("thing_classes") or [])
    records = check_dataset(records, on_error="skip", num_classes=len(names))
    if not records:
        raise DataError(f"the config's data set for {split} has no usable image")
    return EvaluationData(records, names, split)


def folder_images(folder: str | Path) -> list[str]:
    """Images of a folder and its sub-folders, sorted; a single file is taken as it is.

    Raises:
        DataError: there is none.
    """
    folder = Path(folder)
    if folder.is_file():
        return [str(folder)]
    paths = sorted(map(str, list_tree(folder, IMAGE_SUFFIXES)))
    if not paths:
        raise DataError(f"--calibrate {folder}: no image there")
    return paths


def choose_evenly(items: list[Any], count: int) -> list[Any]:
    """At most `count` items, spread over all of them."""
    return [items[index * len(items) // min(count, len(items))] for index in range(min(count, len(items)))]
