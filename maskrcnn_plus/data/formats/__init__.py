"""A module an annotation format: what its files are, read to Detectron2's dataset dicts."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats import coco_folders, cvat, labelme, mask_files, yolo
from maskrcnn_plus.data.formats.annotated import Annotated
from maskrcnn_plus.data.formats.folders import suggest

__all__ = ["FORMATS", "Annotated", "read", "sniff"]

FORMATS: dict[str, ModuleType] = {
    "coco": coco_folders,
    "yolo": yolo,
    "labelme": labelme,
    "masks": mask_files,
    "cvat": cvat,
}
"""Readers by name. Each has `matches(path)`, `read(path)` and `LOOKED_FOR`."""

_SHOWN = 12


def sniff(path: Path, name: str | None = None) -> str:
    """Name of the format of a folder or file, found by its content.

    Args:
        path: folder or annotation file.
        name: the format where it is known; nothing is looked at.

    Raises:
        DataError: nothing is there, no format or several fit, or `name` is unknown.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist. Give the folder of your data.")
    if name is not None:
        if name not in FORMATS:
            raise DataError(f"The format {name!r} is unknown.{suggest(name, FORMATS)} Known: {', '.join(FORMATS)}.")
        return name
    found = [name for name, reader in FORMATS.items() if reader.matches(path)]
    if len(found) > 1:
        raise DataError(f"{path} holds annotations of several formats: {', '.join(found)}. Name one with --format.")
    if not found:
        looked = "".join(f"\n  {name}: {reader.LOOKED_FOR}" for name, reader in FORMATS.items())
        here = sorted(os.listdir(path)) if path.is_dir() else [path.name]
        shown = ", ".join(here[:_SHOWN]) + (f" and {len(here) - _SHOWN} more" if len(here) > _SHOWN else "")
        raise DataError(f"{path}: no annotations recognised. Looked for:{looked}\nHere lie: {shown or 'no files'}.")
    return found[0]


def read(path: Path, name: str | None = None) -> Annotated:
    """Read a folder or file, of a format that is found by its content, or named.

    Raises:
        DataError: as of `sniff`, and what the reader cannot read at all.
    """
    return FORMATS[sniff(path, name)].read(path)
