"""The files of several images as one zip, which is written while it is sent."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence

from fastapi import HTTPException

MISSING = "missing.txt"
"""File of the zip that says which images have no file in it, and why."""


def zip_files(keys: Sequence[str], write: Callable[[str], tuple[str, bytes]]) -> Iterator[bytes]:
    """Pieces of a zip with a file of each image; one file is held at a time.

    Args:
        keys: of the images.
        write: gives the name and the content of an image's file. Where it raises an HTTPException, `MISSING` has its
            detail.
    """
    pieces, used, missing = _Pieces(), {MISSING}, []
    with zipfile.ZipFile(pieces, "w", zipfile.ZIP_DEFLATED) as archive:
        for key in keys:
            try:
                name, content = write(key)
            except HTTPException as error:
                missing.append(f"{error.detail}\n")
                continue
            archive.writestr(_unused(name, used), content)
            yield pieces.take()
        if missing:
            archive.writestr(MISSING, "".join(missing))
    yield pieces.take()


def _unused(name: str, used: set[str]) -> str:
    """The name, with a number where another file has it; small and capital letters are the same, as on Windows."""
    stem, suffix = os.path.splitext(name)
    number = 1
    while name.lower() in used:
        number += 1
        name = f"{stem}_{number}{suffix}"
    used.add(name.lower())
    return name


class _Pieces(io.RawIOBase):
    """Keeps what is written until it is taken."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        taken, self._written = bytes(self._written), bytearray()
        return taken
