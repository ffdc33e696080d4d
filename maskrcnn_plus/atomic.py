"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

TEMPORARY = ".*.maskrcnn_plus.tmp"
"""Glob pattern of what a process that was killed while it wrote may have left."""


def write_atomically(
    path: str | Path, content: bytes | Callable[[IO[bytes]], object], *, durable: bool = False
) -> None:
    """Write a file under a temporary name in the same folder and move it into place in one step.

    Args:
        path: the file; an earlier one is replaced.
        content: its bytes, or a function that writes them to the file object it is given.
        durable: flush to the disk before and after the move, so that it survives a power cut too.

    Raises:
        OSError: it cannot be written (no space, no permission, no folder), with the name of the file as `filename`.
            Whatever is raised, an earlier file is intact and no temporary one is left.
    """
    path = Path(path)
    # Short, because the name itself may be as long as a file system allows.
    temporary = path.with_name(TEMPORARY.replace("*", f"{secrets.token_hex(4)}_{path.name[-50:]}"))
    try:
        _write(temporary, content, durable)
        os.replace(temporary, path)
        if durable:
            _flush_folder(path.parent)
    except Exception as error:
        cause = _os_error(error)
        if cause is None or str(cause.filename) not in ("None", str(temporary), str(path.parent)):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # it was moved, or never made
            temporary.unlink()


def link_or_copy(source: str | Path, path: str | Path) -> None:
    """Hard link a file, or copy it where the file system has no such link; an earlier file is replaced in one step.

    Raises:
        OSError: it cannot be read or written.
    """
    source, path = Path(source).resolve(), Path(path)
    temporary = path.with_name(TEMPORARY.replace("*", secrets.token_hex(4)))
    try:
        os.link(source, temporary)
        os.replace(temporary, path)
        return
    except OSError:
        pass  # another file system, or one without links
    finally:
        temporary.unlink(missing_ok=True)  # a link to the same file stays where it is
    with open(source, "rb") as content:
        write_atomically(path, lambda file: shutil.copyfileobj(content, file))


def _write(path: Path, content: bytes | Callable[[IO[bytes]], object], durable: bool) -> None:
    with open(path, "wb") as file:
        if callable(content):
            content(file)
        else:
            file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _os_error(error: BaseException | None) -> OSError | None:
    """The system's error that another one came of: `torch.save` reports a full disk as a broken archive."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        error = error.__cause__ or error.__context__
    return None
