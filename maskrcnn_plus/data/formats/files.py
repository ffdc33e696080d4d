"""Files of a folder of annotations: found, and each JSON parsed once by all readers that look at it."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.special_files import refuse_special_file

WHOLE = "all"
"""Name of the split of a folder that has none."""

SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
"""What words for a split mean."""

_KEPT_BYTES = 1 << 26  # of JSON files whose content waits for the reader that knows it
_OUTLINE_ITEMS, _OUTLINE_TEXT, _OUTLINE_DEPTH = 8, 200, 5


@dataclass
class _Read:
    """What is known of the files while formats are looked for.

    Attributes:
        trees: the files of folders, by folder and extensions.
        outlines: a shortened content of each JSON file that was looked at; None of one that cannot be read.
        errors: of files that cannot be read, by file.
        contents: whole contents that no reader has taken yet.
        num_bytes: length of their files.
    """

    trees: dict[tuple[Path, tuple[str, ...]], list[Path]] = field(default_factory=dict)
    outlines: dict[Path, Any] = field(default_factory=dict)
    errors: dict[Path, DataError] = field(default_factory=dict)
    contents: dict[Path, Any] = field(default_factory=dict)
    num_bytes: int = 0


_read: ContextVar[_Read | None] = ContextVar("_read", default=None)


@contextmanager
def reading_once() -> Iterator[None]:
    """Within it folders are listed once, and JSON files that were peeked at are not parsed again to be read."""
    if _read.get() is not None:
        yield
        return
    token = _read.set(_Read())
    try:
        yield
    finally:
        _read.reset(token)


def damaged_files() -> list[DataError]:
    """Errors of the files that were peeked at and cannot be read, within `reading_once`."""
    known = _read.get()
    return [] if known is None else list(known.errors.values())


def damaged(path: Path, error: DataError) -> None:
    """Remember that a file that was peeked at cannot be read."""
    known = _read.get()
    if known is not None:
        known.errors[path] = error


def walk(path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` that follows links to folders elsewhere, each once; what is below the top has its own name there."""
    top, seen = os.path.realpath(path), set()
    for folder, folders, names in os.walk(path, followlinks=True):
        paths = {name: os.path.join(folder, name) for name in folders}
        places = {name: os.path.realpath(path) for name, path in paths.items() if os.path.islink(path)}
        inside = {name for name, place in places.items() if f"{place}{os.sep}".startswith(f"{top}{os.sep}")}
        folders[:] = [name for name in folders if name not in inside and places.get(name) not in seen]
        seen.update(places.values())
        yield folder, folders, names


def list_tree(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """Visible files below a folder, or the file itself, with one of the extensions; `._NAME` of macOS is hidden."""
    if path.is_file():
        return [path] if path.suffix.lower() in suffixes else []
    known, key = _read.get(), (path, tuple(suffixes))
    if known is not None and key in known.trees:
        return list(known.trees[key])
    found = []
    for folder, folders, names in walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        chosen = (name for name in sorted(names) if not name.startswith("."))
        found += [Path(folder, name) for name in chosen if Path(name).suffix.lower() in suffixes]
    if known is not None:
        known.trees[key] = list(found)
    return found


def read_json(path: Path) -> Any:
    """Content of a JSON file of UTF-8, -16 or -32, with or without a byte order mark; a list of a JSON value a line.

    Raises:
        DataError: naming the file that is no JSON.
    """
    known = _read.get()
    if known is not None and path in known.contents:
        return known.contents.pop(path)
    try:
        refuse_special_file(path)
        text = path.read_bytes()
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise
            return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}). Export it again.") from error


def peek_json(path: Path) -> Any:
    """What a JSON file looks like: its content with the first items of lists and dicts; None where it has none."""
    known = _read.get()
    if known is not None and path in known.outlines:
        return known.outlines[path]
    try:
        content = read_json(path)
    except DataError as error:
        if known is not None:
            known.outlines[path] = None
        damaged(path, error)
        return None
    outline = _outline(content, 0)
    if known is not None:
        known.outlines[path] = outline
        size = path.stat().st_size
        if not known.contents or known.num_bytes + size <= _KEPT_BYTES:
            known.contents[path] = content
            known.num_bytes += size
    return outline


def _outline(content: Any, depth: int) -> Any:
    if isinstance(content, str):
        return content[:_OUTLINE_TEXT]
    if isinstance(content, dict):
        # All keys of the outermost dict: they tell formats apart, wherever they stand.
        items = content.items() if depth == 0 else itertools.islice(content.items(), 4 * _OUTLINE_ITEMS)
        return {key: _outline(value, depth + 1) for key, value in items} if depth < _OUTLINE_DEPTH else {}
    if isinstance(content, list):
        return [_outline(item, depth + 1) for item in content[:_OUTLINE_ITEMS]] if depth < _OUTLINE_DEPTH else []
    return content


def read_text(path: Path) -> str:
    """Content of a text file of UTF-8, with or without a byte order mark.

    Raises:
        DataError: naming the file that is no text of UTF-8.
    """
    try:
        refuse_special_file(path)
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as text of UTF-8 ({error}). Save it as such.") from error


def read_lines(path: Path) -> list[str]:
    """Lines of a text file without those that are blank, and without blanks at their ends.

    Raises:
        DataError: as of `read_text`.
    """
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def csv_delimiter(header: str) -> str:
    """What parts the cells of a table with this first line: spreadsheets of some languages write semicolons."""
    return max(",;\t", key=header.count)


def split_of(file: Path, root: Path) -> str:
    """Split that a folder between `root` and a file is named after, or `WHOLE`: val, train2017, test_images."""
    parts = file.relative_to(root).parts[:-1] if file.is_relative_to(root) else ()
    words = (word for part in parts for word in re.split(r"[^a-z]+", part.lower()))
    return next((SPLITS[word] for word in words if word in SPLITS), WHOLE)
