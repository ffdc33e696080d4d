"""Run-length codes of Kaggle's competitions: a .csv with ImageId and EncodedPixels, a row an object.

EncodedPixels is "start length start length ...": runs of pixels that are counted from 1, down the columns. Where they
are in a column `annotation`, as in Sartorius' competition, they are counted along the rows. A row without runs is an
image without objects. Classes are in a column such as ClassId, or behind the image's name in Image_Label.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.annotated import UNUSED_ONLY, Annotated
from maskrcnn_plus.data.formats.files import csv_delimiter, list_tree, split_of
from maskrcnn_plus.data.formats.image_finder import ImageFinder
from maskrcnn_plus.data.formats.masks import rle_annotation
from maskrcnn_plus.data.formats.options import ReadOptions
from maskrcnn_plus.masks.label_map import masks_to_rles
from maskrcnn_plus.rle import Runs, encode_runs, ranges
from maskrcnn_plus.special_files import refuse_special_file

LOOKED_FOR = "a .csv with columns such as ImageId and EncodedPixels (run-length codes)"

_CLASS = "object"
_RUNS = ("encodedpixels", "rle", "rlemask", "annotation", "segmentation")
_IMAGES = ("imageid", "image", "imgid", "img", "id", "filename", "imagename", "imagelabel", "imageidclassid")
_CLASSES = ("classid", "class", "label", "celltype", "category", "categoryid", "classname")
_WITH_CLASS = ("imagelabel", "imageidclassid")
_BY_ROWS = ("annotation",)
_LINE = 1 << 16  # characters of a line that are looked at
_EMPTY = ("", "-1", "nan", "none", "null", "1 0")


@dataclass(frozen=True)
class _Columns:
    """Indices of the columns of a table: image, class (None where there is none), runs."""

    image: int
    category: int | None
    runs: int
    with_class: bool
    by_rows: bool


def matches(path: Path) -> bool:
    """Whether a folder, or a .csv, has run-length codes."""
    return any(_find_columns(file) for file in list_tree(path, (".csv",)))


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read all such tables of a folder, or one.

    Raises:
        DataError: there is none, or one is no text.
    """
    data = Annotated()
    root = path if path.is_dir() else path.parent
    finder = ImageFinder(root, data)
    tables = [(file, columns) for file in list_tree(path, (".csv",)) if (columns := _find_columns(file))]
    if not tables:
        raise DataError(f"{path} holds no run-length codes: it needs {LOOKED_FOR}.")
    samples = [entry for entry in tables if "sample_submission" in entry[0].name.lower()]
    if 0 < len(samples) < len(tables):
        tables = [entry for entry in tables if entry not in samples]
        data.notes.append(f"{samples[0][0]} was left out: such a table holds examples of runs, no annotations.")
    for file, columns in tables:
        objects: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
        for number, row in _rows(file):
            if len(row) <= max(columns.image, columns.runs, columns.category or 0):
                data.problems.append(f"{file}, line {number}: it has {len(row)} cells, fewer than the first line.")
                continue
            name, label = row[columns.image].strip(), _CLASS
            if columns.with_class:
                name, _, label = name.rpartition("_")
            elif columns.category is not None:
                label = row[columns.category].strip()
            objects[name].append((f"{file}, line {number}", label, row[columns.runs].strip()))
        for name, rows in objects.items():
            image = finder.find_stem(name, file.parent) or finder.find(name, file)
            if image is None or not data.is_new(image, str(file)) or (size := data.read_size(image)) is None:
                continue
            annotations = []
            for where, label, runs in rows:
                try:
                    if runs.lower() not in _EMPTY:
                        rle = decode_kaggle(runs, size, columns.by_rows)
                        annotations.append(rle_annotation(rle, data.category(label or _CLASS)))
                except ValueError as error:
                    data.problems.append(f"{where}: {error}")
            if not annotations and any(runs.lower() not in _EMPTY for _, _, runs in rows):
                data.assume(UNUSED_ONLY, str(image))
                continue
            data.add_image(split_of(image, root), image, size, annotations)
        if columns.by_rows:
            data.notes.append(f"{file}: runs of the column `annotation` are taken to go along the rows.")
    if data.class_names == [_CLASS]:
        data.notes.append(f"the tables name no class: all objects are of the class {_CLASS!r}.")
    return data


def decode_kaggle(text: str, size: tuple[int, int], by_rows: bool = False) -> dict:
    """COCO RLE of "start length start length ...".

    Args:
        text: runs of pixels counted from 1.
        size: (height, width) of the image.
        by_rows: the pixels are counted along the rows, else down the columns.

    Raises:
        ValueError: the text is no such runs, or they reach beyond the image.
    """
    words = text.split()
    try:
        numbers = np.array(words, dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text[:40]!r} are no runs: start length start length ... is needed.") from error
    height, width = size
    if len(numbers) % 2:
        raise ValueError(f"{len(numbers)} numbers are no runs: a start and a length of each are needed.")
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    if starts.min() < 0 or lengths.min() < 1 or starts.max() >= height * width or lengths.max() > height * width:
        raise ValueError(f"a run is not within the {height * width} pixels of {height} x {width}, counted from 1.")
    ends = starts + lengths
    if ends.max() > height * width:
        raise ValueError(f"a run ends at pixel {ends.max()} of {height * width}. The image may have another size.")
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    opens = np.append(True, starts[1:] > ends[:-1])  # runs that touch or overlap are one
    starts, ends = starts[opens], ends[np.append(opens[1:], True)]
    if by_rows:
        pixels, _ = ranges(starts, ends)
        mask = np.zeros(height * width, dtype=bool)
        mask[pixels] = True
        return masks_to_rles(mask.reshape(1, height, width))[0]
    return encode_runs(Runs(np.zeros(len(starts), dtype=np.int64), starts, ends, np.array([[height, width]])))[0]


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a table behind the first, with the number of their line."""
    refuse_special_file(file)
    limit = csv.field_size_limit(max(file.stat().st_size, 1 << 17))  # of the whole process: put back below
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            header = opened.readline(_LINE)
            opened.seek(0)
            reader = csv.reader(opened, delimiter=csv_delimiter(header))
            next(reader, None)
            rows = [(reader.line_num, row) for row in reader if row]
    except (csv.Error, ValueError) as error:
        raise DataError(f"{file} cannot be read as CSV of UTF-8 ({error}). Save it again.") from error
    finally:
        csv.field_size_limit(limit)
    yield from rows


def _find_columns(file: Path) -> _Columns | None:
    """Columns of a table of run-length codes; None of another one."""
    try:
        refuse_special_file(file)
        with open(file, encoding="utf-8-sig", newline="") as opened:
            header, first_row = opened.readline(_LINE), opened.readline(_LINE)
        line, first = (next(csv.reader([text], delimiter=csv_delimiter(header)), []) for text in (header, first_row))
    except (OSError, ValueError, csv.Error):
        return None
    names = ["".join(letter for letter in name.lower() if letter.isalnum()) for name in line]
    found = [next((names.index(name) for name in known if name in names), None) for known in (_IMAGES, _CLASSES, _RUNS)]
    image, category, runs = found
    if image is None or runs is None or (first and not _looks_like_runs(first, runs)):
        return None
    return _Columns(image, category, runs, names[image] in _WITH_CLASS, names[runs] in _BY_ROWS)


def _looks_like_runs(row: list[str], column: int) -> bool:
    text = row[column].strip() if column < len(row) else ""
    return text.lower() in _EMPTY or all(word.isdigit() for word in text.split()[:4])
