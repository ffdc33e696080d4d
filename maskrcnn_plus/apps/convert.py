"""Annotations of any format that is read, written as a data set that the shipped configs train on."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from maskrcnn_plus.apps.cut_tiles import cut_images
from maskrcnn_plus.apps.data_sets import WRITERS
from maskrcnn_plus.data.check import DataError, check_dataset, list_some, report_problems
from maskrcnn_plus.data.formats import ReadOptions, read
from maskrcnn_plus.data.groups import find_groups
from maskrcnn_plus.data.limits import reading_by_parts
from maskrcnn_plus.data.split import train_and_val


def convert(
    folder: Path,
    output: Path,
    to: str,
    name: str | None = None,
    val: float = 0.2,
    on_error: str = "raise",
    options: ReadOptions | None = None,
    tile: int | None = None,
) -> list[str]:
    """Read a folder and write it as COCO, label images or YOLO.

    The output folder appears whole, or not at all.

    Args:
        folder: folder or annotation file.
        output: a new folder, or an empty one.
        to: key of `WRITERS`: "coco", "labels" or "yolo".
        name: the format of `folder`; None finds it.
        val: part of the images for validation, where the folder has no such split.
        on_error: "raise", or "skip" to leave out images and annotations that cannot be used.
        options: how the annotations are read.
        tile: images that are larger are cut into tiles of at most this side, pixels (`cut_images`); those of one image
            stay together in one split, or where there is no other image, in neighbouring parts.

    Returns:
        What was found, assumed and left out, a line each.

    Raises:
        DataError: the data cannot be read or written so, or `output` has files.
    """
    refuse_full_folder(output)
    with contextlib.nullcontext() if tile is None else reading_by_parts():
        data = read(folder, name, options)
        report_problems(data.problems, on_error)
        splits = {}
        for split, records in data.splits.items():
            splits[split] = check_dataset(records, on_error=on_error, num_classes=len(data.class_names))
    lines = [f"{folder}: {data.format}"]
    with _temporary_folder(output) as tiles:
        for split in splits if tile is not None else ():
            splits[split], notes = cut_images(splits[split], tile, tiles / split)
            data.notes += notes
        splits, notes = train_and_val(splits, val, groups=None if tile is None else find_groups)
        data.notes += notes
        lines += _count(splits, data.class_names)
        data.notes += write_data_set(splits, data.class_names, output, to)
    lines += [f"  assumed: {note}" for note in data.notes]
    lines += list_some(data.problems, "  left out: ")
    return [*lines, f"written to {output}"]


def _count(splits: dict[str, list[dict]], class_names: list[str]) -> list[str]:
    """A line a split: its images and objects."""
    lines = []
    for split, records in splits.items():
        counts = Counter(class_names[each["category_id"]] for record in records for each in record["annotations"])
        objects = ", ".join(f"{class_name} {count}" for class_name, count in counts.items()) or "no objects"
        lines.append(f"  {split}: {len(records)} images ({objects})")
    return lines


def refuse_full_folder(output: Path) -> None:
    """Refuse to write where something is.

    Raises:
        DataError: `output` is a file, or a folder with files.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output} exists and is not empty. Give a new folder.")


def write_data_set(splits: dict[str, list[dict]], class_names: list[str], output: Path, to: str) -> list[str]:
    """Write images and annotations; the folder appears whole, or not at all.

    Args:
        splits: dataset dicts by split.
        class_names: name of each `category_id`.
        output, to: as of `convert`.

    Returns:
        What had to be assumed, a sentence each.

    Raises:
        DataError: the data cannot be written so.
    """
    output = Path(os.path.realpath(output))  # where a link leads
    with _temporary_folder(output) as temporary:
        notes = WRITERS[to](splits, class_names, temporary)
        temporary.chmod(0o755)
        if not os.path.ismount(output):
            os.replace(temporary, output)
            return notes
        for entry in temporary.iterdir():  # nothing takes the place of a mounted folder
            os.replace(entry, output / entry.name)
    return notes


@contextlib.contextmanager
def _temporary_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output`, or in it where something is mounted there, which is removed in the end."""
    place = output if os.path.ismount(output) else output.parent
    place.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".", suffix=".maskrcnn_plus.tmp", dir=place))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
