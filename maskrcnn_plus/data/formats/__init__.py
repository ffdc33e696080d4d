"""A module an annotation format: what its files are, read to Detectron2's dataset dicts."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from types import ModuleType

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats import (
    aperio,
    cellpose,
    cityscapes,
    coco_folders,
    cvat,
    imagej,
    kaggle_rle,
    label_studio,
    labelme,
    labels,
    mask_files,
    qupath,
    supervisely,
    via,
    voc,
    yolo,
)
from maskrcnn_plus.data.formats.annotated import Annotated
from maskrcnn_plus.data.formats.files import damaged_files, reading_once
from maskrcnn_plus.data.formats.folders import suggest
from maskrcnn_plus.data.formats.numbered import merge_numbered
from maskrcnn_plus.data.formats.options import ReadOptions
from maskrcnn_plus.data.formats.several import choose_reading
from maskrcnn_plus.errors import listed

__all__ = ["FORMATS", "Annotated", "ReadOptions", "read", "sniff"]

FORMATS: dict[str, ModuleType] = {
    "coco": coco_folders,
    "yolo": yolo,
    "labelme": labelme,
    "masks": mask_files,
    "cvat": cvat,
    "via": via,
    "label_studio": label_studio,
    "supervisely": supervisely,
    "cityscapes": cityscapes,
    "qupath": qupath,
    "aperio": aperio,
    "voc": voc,
    "cellpose": cellpose,
    "imagej": imagej,
    "kaggle": kaggle_rle,
    "labels": labels,
}
"""Readers by name.

Each has `matches(path)`, `read(path, options)`, `LOOKED_FOR`, what its files are, and perhaps `OPTIONS`, the names of
those of `ReadOptions` that it heeds; `merge_numbered` is heeded for all.
"""

_SHOWN = 12


def sniff(path: Path, name: str | None = None) -> list[str]:
    """Names of the formats of a folder or file, found by its content: one, or several of which nobody can tell by that.

    Args:
        path: folder or annotation file.
        name: the format where it is known; nothing is looked at.

    Raises:
        DataError: nothing is there, no format fits, the only files are damaged, or `name` is unknown.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist. Give the folder of your data.")
    if name is not None:
        if name not in FORMATS:
            raise DataError(f"The format {name!r} is unknown.{suggest(name, FORMATS)} Known: {', '.join(FORMATS)}.")
        return [name]
    with reading_once():
        found = [name for name, reader in FORMATS.items() if reader.matches(path)]
        damaged = damaged_files()
    if len(found) > 1 and "labels" in found:  # pictures of what another file says better
        found.remove("labels")
    if not found and damaged:
        more = f" {len(damaged) - 1} more files cannot be read either." if len(damaged) > 1 else ""
        raise DataError(f"{damaged[0]}{more}")
    if not found and (boxes := voc.find_boxes(path)):
        raise DataError(
            f"{path} holds boxes of Pascal VOC, such as {boxes}, and no masks. Draw or export polygons or masks."
        )
    if not found:
        looked = "".join(f"\n  {name}: {reader.LOOKED_FOR}" for name, reader in FORMATS.items())
        here = sorted(os.listdir(path)) if path.is_dir() else [path.name]
        raise DataError(
            f"{path}: no annotations recognised. Looked for:{looked}\nHere lie: {listed(here, _SHOWN) or 'no files'}.\n"
            "Not annotated yet? tools/predict.py --format labelme (cvat, imagej, coco-dataset) writes what a model, "
            "such as maskrcnn_plus://nuclei, finds, to be corrected."
        )
    return found


def read(path: Path, name: str | None = None, options: ReadOptions | None = None) -> Annotated:
    """Read a folder or file, of a format that is found by its content, or named.

    Raises:
        DataError: as of `sniff`; what the reader cannot read at all; an option that the format knows nothing of;
            several formats that annotate different images.
    """
    options = options or ReadOptions()
    with reading_once():
        found = sniff(path, name)
        data = choose_reading(path, found, lambda name: _read_as(path, name, options))
    merge_numbered(data, options.merge_numbered)
    return data


def _read_as(path: Path, name: str, options: ReadOptions) -> Annotated:
    reader = FORMATS[name]
    taken = ("merge_numbered", *getattr(reader, "OPTIONS", ()))
    for each in fields(options):
        if each.name not in taken and getattr(options, each.name) != each.default:
            flag = f"--{each.name.replace('_', '-')}"
            raise DataError(f"{path} is read as {name}, which knows nothing of {flag}. Leave it out.")
    data = reader.read(path, options)
    data.format = name
    data.finish(path)
    return data
