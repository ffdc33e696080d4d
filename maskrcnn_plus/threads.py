"""How long OpenMP's threads wait actively for each other, on a machine that others use too.

GNU's OpenMP, which PyTorch comes with on Linux, lets a thread spin for milliseconds before it sleeps. With the cores
taken by other processes, the thread that is waited for does not run meanwhile: on two cores with two other busy
processes a training step took nine times its time. Spinning for some microseconds it takes less than four times, and
is as fast as before where nothing else runs.
"""

from __future__ import annotations

import os

SPINS = 20_000
"""Rounds of the loop that a thread waits in, about 50 microseconds; GNU's default is 300,000."""


def wait_briefly() -> None:
    """Set it for this process, unless the user's environment says how to wait. Before PyTorch is loaded."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
