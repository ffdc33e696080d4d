"""Registering data sets with Detectron2's catalogs: any source, and folders of label images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog

from maskrcnn_plus.data.check import DataError, report_problems
from maskrcnn_plus.data.formats.label_maps import LabelMapFolder, label_map_annotations

__all__ = ["label_map_annotations", "register_label_maps", "register_source"]


def register_label_maps(
    name: str,
    root: str,
    split: str | None = None,
    *,
    thing_classes: Sequence[str] | None = ("object",),
    image_dir: str = "images",
    label_dir: str = "labels",
    on_error: str = "raise",
) -> str:
    """Register a folder of images and label images as a data set of one class.

    Nothing is read before `DatasetCatalog.get(name)`; label images are read once a process.

    Args:
        name: name in DatasetCatalog and MetadataCatalog.
        root: folder of the data set, see the layouts in `maskrcnn_plus.data.formats.label_maps`.
        split: folder in root, or key in root/splits.json; None takes all images in root/images.
        thing_classes: name of the class; None for "object".
        image_dir, label_dir: names of the folders of images and of label images.
        on_error: what loading does with images that are missing, unreadable or have no label image of their size:
            "raise", or "skip" them with one warning that lists them.

    Returns:
        `name`, so that the call can stand in a config where a data set name is expected.

    Raises:
        DataError: there are several classes, or the name is taken. Loading raises it for problems in the folder.
    """
    thing_classes = (thing_classes,) if isinstance(thing_classes, str) else tuple(thing_classes or ("object",))
    if len(thing_classes) != 1:
        raise DataError(
            f"Data set '{name}': label images hold one class, but thing_classes={list(thing_classes)}. "
            "Name one class, or use COCO annotations for several."
        )
    report_problems([], on_error)  # refuses an unknown on_error at once
    root = os.path.abspath(os.path.expanduser(root)) if root else ""
    split = None if split is None else str(split)
    source = LabelMapFolder(root, split, image_dir, label_dir, on_error)
    return register_source(
        name, source, thing_classes=list(thing_classes), evaluator_type="label_map", root=root, split=split
    )


def register_source(name: str, source: Callable[[], list[dict]], **metadata: object) -> str:
    """Register a data set function and its metadata; registering an equal one again changes nothing.

    Args:
        name: name in DatasetCatalog and MetadataCatalog.
        source: function that returns dataset dicts and compares equal to one with the same arguments.
        metadata: attributes for MetadataCatalog.

    Returns:
        `name`.

    Raises:
        DataError: the name is taken by something else.
    """
    taken = name in DatasetCatalog and DatasetCatalog[name] != source
    known = MetadataCatalog.get(name).as_dict()
    differing = [key for key, value in metadata.items() if key in known and known[key] != value]
    if taken or differing:
        what = f"with another {', '.join(differing)}" if differing else "by something else"
        raise DataError(f"Data set name '{name}' is already registered {what}. Use another name.")
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, source)
    MetadataCatalog.get(name).set(**metadata)
    return name
