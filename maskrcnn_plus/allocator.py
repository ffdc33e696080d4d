"""Memory that PyTorch frees on a CPU stays with the process.

glibc gives large blocks back to the kernel as soon as they are freed and gets them anew, page by page, for the next
tensor; a training step of Mask R-CNN spends a tenth of its time on that.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc reuse freed blocks up to 2 GB; True where that took effect (Linux with glibc)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST))
