"""The images that weights have learned from, and those that they were judged by, as their checkpoint remembers them.

An image is known by its name and the size of its file, wherever it lies.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from maskrcnn_plus.data.check_cache import loaded_once
from maskrcnn_plus.weights.files import read_file

__all__ = ["EARLIER", "KEYS", "image_key", "image_keys", "read_learned"]

KEYS, EARLIER = "keys", "earlier_keys"
"""Of a split in the "data" of a checkpoint's description: of its images, and of those that the weights knew before."""

_DIGITS = 10  # of a key, hexadecimal


def image_key(record: Mapping[str, Any]) -> str:
    """A key for the file of a dataset dict; "" where it names none."""
    path = str(record.get("file_name") or "")
    if not path:
        return ""
    size = os.path.getsize(path) if os.path.isfile(path) else -1
    text = os.fsencode(f"{os.path.basename(path)}/{size}")  # names need not be UTF-8
    return hashlib.blake2b(text, digest_size=_DIGITS // 2).hexdigest()


def image_keys(records: Iterable[Mapping[str, Any]]) -> str:
    """The keys of dataset dicts, each once, in one text."""
    return "".join(sorted({image_key(record) for record in records}))


def read_learned(weights: str | os.PathLike | None) -> dict[str, str]:
    """The images that a checkpoint knows: "train" or "val" by key; none where it does not say.

    Args:
        weights: a local file of weights; anything else, such as an exported folder, knows none.

    Raises:
        WeightsError: the file cannot be read.
    """
    path = os.path.expanduser(weights or "")
    return loaded_once(path, ("learned",), lambda: _read(path)) if os.path.isfile(path) else {}


def _read(path: str) -> dict[str, str]:
    description = read_file(path).get("description")
    data = description.get("data") if isinstance(description, dict) else None
    learned: dict[str, str] = {}
    for split, entry, name in (("test", KEYS, "val"), ("train", EARLIER, "train"), ("train", KEYS, "train")):
        part = data.get(split) if isinstance(data, dict) else None
        keys = part.get(entry) if isinstance(part, dict) else None
        if isinstance(keys, str):
            learned |= {keys[start : start + _DIGITS]: name for start in range(0, len(keys), _DIGITS)}
    return learned
