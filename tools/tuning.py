"""What the command lines set for their process: how OpenMP's threads wait, and what becomes of freed memory.

GNU's OpenMP, which PyTorch comes with on Linux, lets a thread spin for milliseconds before it sleeps. With the cores
taken by other processes, the thread that is waited for does not run meanwhile: on two cores with two other busy
processes a training step took nine times its time. Spinning for some microseconds it takes less than four times, and
is as fast as before where nothing else runs.

The package sets nothing of this by itself: whoever uses it in a program of their own decides.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SPINS = 20_000
"""Rounds of the loop that a thread waits in, about 50 microseconds; GNU's default is 300,000."""


def shorten_thread_waits() -> None:
    """Set it for this process, unless the user's environment says how to wait; before PyTorch is loaded."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def keep_memory_on_cpu(device: str | torch.device) -> None:
    """Let freed memory stay with the process where tensors are on the CPU; see `maskrcnn_plus.allocator`.

    Args:
        device: of the tensors, as `train.device`.
    """
    from maskrcnn_plus.allocator import keep_freed_memory
    from maskrcnn_plus.device import usable_device

    if usable_device(device).type == "cpu":
        keep_freed_memory()
