"""The csv of VIA: a row a region, with JSON in its columns, in which bare words may stand."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.annotated import Annotated
from maskrcnn_plus.data.formats.files import csv_delimiter
from maskrcnn_plus.special_files import refuse_special_file

_COLUMNS = ("filename", "region_shape_attributes", "region_attributes")
_LONGEST_FIELD = 1 << 28
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[A-Za-z_][\w-]*(?:\s*:)?')
_KEPT_WORDS = ("true", "false", "null")
_NOTHING = ("undefined", "NaN", "None", "nan", "Infinity")
_BARE = "rows with bare words in their JSON, such as undefined, which were taken as no value or as text"


def is_via_csv(file: Path) -> bool:
    """Whether the first line of a file names the columns of VIA."""
    try:
        refuse_special_file(file)
        with file.open(encoding="utf-8-sig") as lines:
            header = lines.readline(10_000)
        return all(name in header for name in _COLUMNS)
    except (OSError, ValueError):
        return False


def read_via_csv(file: Path, data: Annotated) -> dict[str, list[Any]]:
    """Regions of each image of a csv, as they would stand in JSON.

    Rows that cannot be read are problems.

    Raises:
        DataError: naming the file that is no csv.
    """
    images: dict[str, list[Any]] = {}
    limit = csv.field_size_limit(_LONGEST_FIELD)  # one of the process: polygons are longer than what it allows
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            header = text.readline()
            text.seek(0)
            for number, row in enumerate(csv.DictReader(text, delimiter=csv_delimiter(header)), start=2):
                row = {str(key).lstrip("#").strip(): value for key, value in row.items()}
                name = row.get("filename")
                if not name:
                    data.problems.append(f"{file}, row {number}: it has no filename.")
                    continue
                regions = images.setdefault(name, [])
                where = f"{file}, row {number}"
                try:
                    shape, attributes = (_parse(row.get(key), where, data) for key in _COLUMNS[1:])
                except ValueError as error:
                    data.problems.append(f"{where}: {error}")
                    continue
                if shape:
                    regions.append({"shape_attributes": shape, "region_attributes": attributes})
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as csv ({error}). Export it again.") from error
    finally:
        csv.field_size_limit(limit)
    return images


def _parse(text: str | None, where: str, data: Annotated) -> dict[str, Any]:
    """The dict of a column; an empty one of an empty column."""
    if text is None or not text.strip() or text.strip() in _NOTHING:
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        try:
            content = json.loads(_WORD.sub(_quote, text))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{text[:60]!r} is no JSON ({error}).") from error
        data.assume(_BARE, where)
    if not isinstance(content, dict):
        raise ValueError(f"{text[:60]!r} is no JSON object.")
    return content


def _quote(match: re.Match) -> str:
    word = match.group()
    if word.startswith('"') or word in _KEPT_WORDS:
        return word
    if word.endswith(":"):
        return f"{json.dumps(word[:-1].rstrip())}:"
    return "null" if word in _NOTHING else json.dumps(word)
