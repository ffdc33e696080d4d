"""Weights that come with the package: a table, `zoo.json`, and a file of each name in it.

They are sources of weights, `maskrcnn_plus://NAME`, wherever one is asked for; docs/models.md is their model card.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.weights.conversion import WeightsError

__all__ = ["FOLDER", "SCHEME", "ShippedModel", "find_model_file", "read_table", "write_table"]

SCHEME = "maskrcnn_plus://"
FOLDER = Path(__file__).resolve().parent
_TABLE = "zoo.json"


@dataclass(frozen=True)
class ShippedModel:
    """A row of the table.

    Attributes:
        file: name of its file in the folder of the table.
        size: of the file in bytes.
        sha256: of the file, in hexadecimal digits.
        description: what it finds, in a line.
        licence: of the weights.
        credits: data that they learned from, a line each, as their licences ask for.
    """

    file: str
    size: int
    sha256: str
    description: str
    licence: str
    credits: list[str]


def read_table() -> dict[str, ShippedModel]:
    """The models that are shipped, by name."""
    table = json.loads((FOLDER / _TABLE).read_text(encoding="utf-8"))
    return {name: ShippedModel(**row) for name, row in table.items()}


def write_table(table: Mapping[str, ShippedModel]) -> None:
    """Replace the table."""
    rows = {name: asdict(table[name]) for name in sorted(table)}
    write_atomically(FOLDER / _TABLE, (json.dumps(rows, indent=2, ensure_ascii=False) + "\n").encode())


def find_model_file(name: str) -> Path:
    """The file of a shipped model.

    Args:
        name: as in the table, without `SCHEME`.

    Raises:
        WeightsError: there is no such model, or its file is missing or not the one of the table.
    """
    table = read_table()
    if name not in table:
        close = difflib.get_close_matches(name, table, n=1)
        hint = f" Did you mean {SCHEME}{close[0]}?" if close else ""
        known = ", ".join(f"{SCHEME}{each}" for each in sorted(table)) or "none"
        raise WeightsError(f"{SCHEME}{name}: no such model comes with the package.{hint} Those that do: {known}.")
    model = table[name]
    path = FOLDER / model.file
    remedy = "Install maskrcnn_plus again."
    try:
        status = path.stat()
    except OSError as error:
        raise WeightsError(f"{SCHEME}{name}: its file {path} cannot be read ({error.strerror}). {remedy}") from error
    # A file of another size is not read: it may be of any length.
    found = _sha256(path, status.st_mtime_ns) if status.st_size == model.size else f"of {status.st_size} bytes"
    if found != model.sha256:
        raise WeightsError(
            f"{SCHEME}{name}: its file {path} is not the one that was shipped (SHA-256 {found}, {model.sha256} of "
            f"{model.size} bytes is expected). {remedy}"
        )
    return path


@functools.cache
def _sha256(path: os.PathLike, changed: int) -> str:
    """Hash of a file as it was at its last change, since one command asks several times."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
