"""Memory that PyTorch frees on a CPU stays with the process.

glibc gives large blocks back to the kernel as soon as they are freed and gets them anew, page by page, for the next
tensor; a training step of Mask R-CNN spends a tenth of its time on that. It is a setting of the whole process, which
the command lines make; in a program of your own call `keep_freed_memory()`.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc reuse freed blocks up to 2 GB; True where that took effect (Linux with glibc)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST))


class HeapLimit:
    """Gives freed memory back to the kernel when more and more of it cannot be reused.

    A small result that stays, in the middle of where a large block was, leaves too little room for the next large
    block: with `keep_freed_memory` the process would grow by a block a result. An object of this class is called after
    each of many equal pieces of work, such as the tiles of an image. Without effect but on Linux with glibc.
    """

    SLACK = 256 * 2**20
    """Bytes that a process may grow by before this does anything."""

    def __init__(self) -> None:
        self._lasting = _private_bytes()
        self._work: int | None = None  # bytes that a piece of work takes, by the first

    def __call__(self) -> None:
        """Look at the memory of the process, and free what is free if it has grown."""
        used = _private_bytes()
        if self._work is None:
            self._work = max(used - self._lasting, 0)
        if used > self._lasting + 1.5 * self._work + self.SLACK:
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)
            self._lasting = _private_bytes()


def _private_bytes() -> int:
    """Memory of this process that is not of files; 0 where the system does not tell."""
    try:
        pages = [int(number) for number in Path("/proc/self/statm").read_text().split()]
    except (OSError, ValueError):
        return 0
    return (pages[1] - pages[2]) * os.sysconf("SC_PAGE_SIZE")  # resident, shared
