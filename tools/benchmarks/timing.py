"""Times of functions that run in turn in one process, so that a change of the machine's load meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def time_in_turn(
    functions: Sequence[Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Milliseconds of the runs of each function, one function after the other, the first round left out.

    Args:
        functions: to run.
        rounds: runs of each.
        clock: gives seconds; `time.process_time` counts those of this process on all its cores, which other programs on
            the machine disturb less.
    """
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 1):
        for function, record in zip(functions, times, strict=True):
            start = clock()
            function()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            record.append((clock() - start) * 1e3)
    return [record[1:] for record in times]


def compare(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> str:
    """Run both in turn; their medians with the spread (quartiles), and the ratio."""
    ours_ms, theirs_ms = time_in_turn((ours, theirs), rounds)
    ratio = statistics.median(theirs_ms) / statistics.median(ours_ms)
    return f"{median(ours_ms)} vs {median(theirs_ms)} ms  {ratio:5.1f} x"


def median(times: list[float]) -> str:
    """The median with the quartiles, in milliseconds."""
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    digits = 1 if middle >= 10 else 3
    return f"{middle:8.{digits}f} [{low:.{digits}f}-{high:.{digits}f}]"
