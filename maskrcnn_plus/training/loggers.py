"""The numbers of a training to services of experiment tracking: Weights & Biases and MLflow.

Each is an extra, which is imported when `train.logger` names it. Where the numbers go is the services' own business,
which their environment variables settle (`WANDB_MODE=offline`, `WANDB_PROJECT`, `MLFLOW_TRACKING_URI`,
`MLFLOW_EXPERIMENT_NAME`). What goes wrong with a service ends its log, with a warning, and never the training.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.utils.events import EventWriter, get_event_storage

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.errors import UserError

__all__ = ["LOGGERS", "build_loggers", "check_loggers"]

logger = logging.getLogger(__name__)

WINDOW = 20
"""Values by whose median figures are smoothed."""

_RECORD = "loggers.json"  # in the output folder: the id of the run at each service
_PROJECT = "maskrcnn_plus"


def check_loggers(names: Sequence[str]) -> None:
    """Refuse services whose package is missing, before a training starts.

    Raises:
        UserError: naming the extra to install.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"train.logger={name} needs the package {name}, which cannot be imported ({error}): "
                f"pip install 'maskrcnn_plus[{name}]', or leave it out."
            ) from error


def build_loggers(
    names: Sequence[str], output_dir: str, start_iter: int, config: Mapping[str, Any]
) -> list[EventWriter]:
    """Writers to the services that `train.logger` names.

    Args:
        names: of `LOGGERS`.
        output_dir: of the training; its name is the run's. The ids of the runs are kept in it.
        start_iter: above 0 a resumed training goes on with its runs.
        config: of the training, by `flatten_config`.
    """
    path = Path(output_dir, _RECORD)
    try:
        known = json.loads(path.read_bytes()) if start_iter else {}
    except (OSError, ValueError):
        known = {}
    writers = []
    for name in names:
        try:
            writer = LOGGERS[name](output_dir, known.get(name), config)
        except Exception as error:  # whatever a service raises where it cannot be reached
            logger.warning(f"train.logger: no log to {name}, which says: {_first_line(error)}")
            continue
        known[name] = writer.run_id
        writers.append(writer)
    if writers:
        write_atomically(path, json.dumps(known).encode())
    return writers


class _ServiceWriter(EventWriter):
    """Sends what is new since the last call, until something goes wrong."""

    run_id: str
    _last, _open = -1, True

    def write(self) -> None:
        """Send the new values of each iteration."""
        new: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(WINDOW).items():
            if iteration > self._last and math.isfinite(value):
                new.setdefault(iteration, {})[name] = float(value)
        self._last = max([self._last, *new])
        for iteration in sorted(new):
            self._safely(self._send, new[iteration], iteration)

    def close(self) -> None:
        """End the run."""
        self._safely(self._finish)
        self._open = False

    def _safely(self, call: Any, *arguments: Any) -> None:
        if not self._open:
            return
        try:
            call(*arguments)
        except Exception as error:  # whatever a service raises: a training is worth more than its log
            self._open = False
            logger.warning(f"{type(self).__name__} ends here, the training goes on: {_first_line(error)}")

    def _send(self, values: dict[str, float], iteration: int) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError


class WandbWriter(_ServiceWriter):
    """To Weights & Biases."""

    def __init__(self, output_dir: str, run_id: str | None, config: Mapping[str, Any]) -> None:
        """Start a run, or go on with one."""
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=Path(output_dir).resolve().name,
            dir=output_dir,
            config=dict(config),
            id=run_id,
            resume="allow" if run_id else None,
        )
        self.run_id = self._run.id

    def _send(self, values: dict[str, float], iteration: int) -> None:
        self._run.log(values, step=iteration)

    def _finish(self) -> None:
        self._run.finish()


class MlflowWriter(_ServiceWriter):
    """To MLflow."""

    def __init__(self, output_dir: str, run_id: str | None, config: Mapping[str, Any]) -> None:
        """Start a run, or go on with one."""
        self._mlflow = importlib.import_module("mlflow")
        if not run_id and "MLFLOW_EXPERIMENT_NAME" not in os.environ and "MLFLOW_EXPERIMENT_ID" not in os.environ:
            self._mlflow.set_experiment(_PROJECT)
        run = self._mlflow.start_run(run_id=run_id, run_name=None if run_id else Path(output_dir).resolve().name)
        self.run_id = run.info.run_id
        if not run_id:
            self._mlflow.log_dict(dict(config), "config.json")

    def _send(self, values: dict[str, float], iteration: int) -> None:
        # The names that it takes have no other characters; classes are called as their owner likes.
        named = {re.sub(r"[^\w.\- /]", "_", name, flags=re.ASCII): value for name, value in values.items()}
        self._mlflow.log_metrics(named, step=iteration)

    def _finish(self) -> None:
        self._mlflow.end_run()


LOGGERS = {"wandb": WandbWriter, "mlflow": MlflowWriter}
"""Writers by the names that `train.logger` may have, which are also their packages' and extras'."""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
