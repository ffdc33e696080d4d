"""Where the numbers of a training go: console, `metrics.json` and TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from detectron2.engine import hooks
from detectron2.utils.events import CommonMetricPrinter, EventWriter, TensorboardXWriter, get_event_storage

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.training.loggers import WINDOW, build_loggers

logger = logging.getLogger(__name__)

_OF_A_STEP = {"iteration", "time", "data_time", "eta_seconds", "lr", "grad_norm"}


def build_writers(settings: Any, start_iter: int, config: Mapping[str, Any] | None = None) -> list[EventWriter]:
    """Console, `metrics.json`, TensorBoard, and the services of `logger`.

    What a killed run wrote into `metrics.json` after its last checkpoint is dropped.

    Args:
        settings: `train` of a config: `output_dir`, `max_iter` and, if it likes, `logger`.
        start_iter: first iteration of this run.
        config: of the training as flat plain data, for the services.

    Raises:
        OSError: a file cannot be written.
    """
    output_dir = settings.output_dir
    path = os.path.join(output_dir, "metrics.json")
    if os.path.exists(path):
        kept = list(_lines_before(path, start_iter))
        write_atomically(path, "".join(kept).encode())
    return [
        CommonMetricPrinter(settings.max_iter),
        MetricsFile(path),
        TensorboardXWriter(output_dir, purge_step=start_iter),
        *build_loggers(settings.get("logger") or [], output_dir, start_iter, config or {}),
    ]


class MetricsFile(EventWriter):
    """Detectron2's `JSONWriter`, with null for NaN and infinity, which JSON does not have."""

    def __init__(self, path: str) -> None:
        """Append a line an iteration to the file; what is smoothed is the median of the last `WINDOW` values."""
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - `close` closes it
        self._last = -1

    def write(self) -> None:
        """Write what is new since the last call."""
        lines: dict[int, dict[str, float | None]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(WINDOW).items():
            if iteration > self._last:
                lines[iteration][name] = value if math.isfinite(value) else None
        for iteration, values in lines.items():
            self._file.write(json.dumps({**values, "iteration": iteration}, sort_keys=True, allow_nan=False) + "\n")
        self._last = max([self._last, *lines])
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class MetricsWriter(hooks.PeriodicWriter):
    """Detectron2's hook, whose errors name the folder that cannot be written to."""

    def __init__(self, writers: list[EventWriter], period: int, output_dir: str) -> None:
        """Write each `period` iterations to the `writers` of `output_dir`."""
        super().__init__(writers, period)
        self._output_dir = output_dir

    def after_step(self) -> None:
        """Write when it is time; the time that is left follows from what the iterations are now."""
        for writer in self._writers:
            if isinstance(writer, CommonMetricPrinter):
                writer._max_iter = self.trainer.max_iter
        self._named(super().after_step)

    def after_train(self) -> None:
        """Write what is left and close; where the training was ended by an error, that one matters more."""
        try:
            self._named(super().after_train)
        except OSError as error:
            if self.trainer.iter >= self.trainer.max_iter:
                raise
            logger.warning(f"{error}: the last metrics are lost.")

    def _named(self, write: Any) -> None:
        try:
            write()
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fsdecode(error.filename or self._output_dir)) from error


def _lines_before(path: str, iteration: int) -> Iterator[str]:
    """The entries of earlier iterations; what is none is left out, and said unless a kill has cut it off."""
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = file.readlines()
    damaged = []
    for number, line in enumerate(lines, start=1):
        entry = _entry(line)
        if entry is None:
            damaged.append(number)
        # The evaluation after the last iteration has the number of the next one, by which a longer run goes on. So has
        # what an iteration left that an error ended, such as the end of another process.
        elif entry["iteration"] < iteration or (entry["iteration"] == iteration and _is_of_evaluation(entry)):
            yield line
    damaged = [number for number in damaged if number < len(lines)]
    if damaged:
        logger.warning(f"{path}: {len(damaged)} damaged lines are dropped, the first is line {damaged[0]}.")


def _is_of_evaluation(entry: dict[str, Any]) -> bool:
    return "total_loss" not in entry and bool(entry.keys() - _OF_A_STEP)


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    entry = {"iteration": 0, **entry} if isinstance(entry, dict) else None
    return entry if entry and isinstance(entry["iteration"], int | float) else None
