"""What a folder of a data set holds: its splits, and its files by their names without extension."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.special_files import refuse_special_file


def read_splits(path: str) -> dict[str, list[str]]:
    """Read splits.json; a missing file has no splits."""
    if not os.path.exists(path):
        return {}
    expected = 'It must look like {"train": ["image1", "image2"], "val": ["image3"]}, names without extension.'
    try:
        refuse_special_file(path)
        with open(path, encoding="utf-8-sig") as file:
            splits = json.load(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}). {expected}") from error
    if not isinstance(splits, dict) or not all(isinstance(ids, list) for ids in splits.values()):
        raise DataError(f"{path}: this is not an object with a list for each split. {expected}")
    for split, ids in splits.items():
        if not all(isinstance(image_id, str) for image_id in ids):
            raise DataError(f"{path}: the split '{split}' holds something else than strings. {expected}")
        if len(set(ids)) < len(ids):
            twice = next(image_id for image_id in ids if ids.count(image_id) > 1)
            raise DataError(
                f"{path}: the split '{split}' names the image {twice!r} more than once. Remove one of them."
            )
    return splits


def list_files(folder: str, suffixes: Sequence[str], problems: list[str]) -> dict[str, str]:
    """Map file name without extension -> path, for visible files with one of the extensions."""
    if not os.path.isdir(folder):
        raise DataError(
            f"{folder}: there is no such folder. A data set needs a folder of images and one of label images."
        )
    files: dict[str, str] = {}
    for entry in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(entry)
        if entry.startswith(".") or suffix.lower() not in suffixes:
            continue
        path = os.path.join(folder, entry)
        if stem in files:
            problems.append(f"{path}: {files[stem]} has the same name with another extension. Remove one of them.")
        files.setdefault(stem, path)
    return files


def suggest(name: str, known: Sequence[str] | Mapping[str, str]) -> str:
    """Return ' Did you mean ...?' for the names closest to `name`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=2)
    return f" Did you mean {' or '.join(repr(entry) for entry in near)}?" if near else ""
