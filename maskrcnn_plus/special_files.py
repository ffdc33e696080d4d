"""Pipes, sockets and devices, told from files before they are opened: reading one waits for ever, or never ends."""

from __future__ import annotations

import os
import stat

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def refuse_special_file(path: str | os.PathLike) -> None:
    """Do nothing for a file, a folder, a link to one, and a path where nothing is or may be looked at.

    Raises:
        OSError: naming the path and what it is.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # whoever opens it says so
        return
    kind = next((kind for test, kind in _KINDS if test(mode)), None)
    if kind:
        raise OSError(f"{os.fspath(path)} is {kind}, not a file: write its content to a file first.")
