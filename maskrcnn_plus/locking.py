"""One run at a time in an output folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import weakref
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

_held: weakref.WeakSet[IO] = weakref.WeakSet()
# What file systems without locks answer, e.g. Lustre as it is often mounted.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def lock_folder(folder: str | Path, file: str | Path, remedy: str, shared: bool = False) -> IO:
    """Keep other runs out of a folder for as long as the returned file is open.

    The lock belongs to this process alone, not to those that it forks, and is gone when the process ends, however that
    happens. Where the file system has no locks, a warning says so.

    Args:
        folder: what is locked, for the message.
        file: that holds the lock, made with its folders.
        remedy: ends the message of a folder that another run has.
        shared: keep out only those who want the folder for themselves alone.

    Returns:
        The open file, a context manager.

    Raises:
        BlockingIOError: another run has the folder.
        OSError: the file cannot be made.
    """
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = open(path, "a+")  # noqa: SIM115 - the caller closes it
    try:
        fcntl.flock(opened, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        opened.close()
        raise BlockingIOError(f"{folder}: another run is writing to this folder; {remedy}") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            opened.close()
            raise
        logger.warning(f"{folder} is on a file system without locks: take care that no other run writes to it.")
    _held.add(opened)
    return opened


def _release() -> None:
    """A forked process closes its copies, which would hold the locks beyond the end of their owner."""
    for opened in list(_held):
        opened.close()


os.register_at_fork(after_in_child=_release)
