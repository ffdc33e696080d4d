"""Times of functions that run in turn in one process, so that a change of the machine's load meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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


def tabulate_predictions(
    predicts: Mapping[str, Callable[[Any], object]],
    images: Sequence[Any],
    rounds: int,
    processor_time: bool = False,
    objects: Sequence[int] = (),
) -> float:
    """Print a table of milliseconds an image, of functions that predict one, run in turn over all images.

    Args:
        predicts: the functions by name, to the first of which the others are compared.
        images: for each of them.
        rounds: runs of each over all images.
        processor_time: count the time of the processor, of all threads, instead of the clock's.
        objects: a number for each function, for a column of its own.

    Returns:
        The median of the first.
    """
    functions = [lambda f=f: [f(image) for image in images] for f in predicts.values()]
    watch = time.process_time if processor_time else time.perf_counter
    times = [[each / len(images) for each in record] for record in time_in_turn(functions, rounds, watch)]
    first, *_ = middle = [statistics.median(record) for record in times]
    headings = ["", f"an image, ms{' of the processor' * processor_time}", f"times {next(iter(predicts))}"]
    headings += ["objects"] * bool(objects)
    print(f"\n| {' | '.join(headings)} |\n|{'---|' * len(headings)}")
    for index, name in enumerate(predicts):
        cells = [
            name,
            median(times[index]).strip(),
            f"{middle[index] / first:.2f}",
            *map(str, objects[index : index + 1]),
        ]
        print(f"| {' | '.join(cells)} |")
    return first


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
