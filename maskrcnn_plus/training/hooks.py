"""Hooks beside Detectron2's own: checkpoints, the best weights and averaged weights."""

from __future__ import annotations

import json
import logging
import math
import operator
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase, hooks
from torch import nn
from torch.optim.swa_utils import AveragedModel

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.checkpoints.checkpointer import Checkpointer
from maskrcnn_plus.weights.conversion import WeightsError
from maskrcnn_plus.weights.files import read_file

logger = logging.getLogger(__name__)


class PeriodicCheckpoint(HookBase):
    """Save everything that a resumed run needs each `period` iterations and at the end (`model_final.pth`)."""

    def __init__(self, checkpointer: Checkpointer, period: int, max_to_keep: int | None = None) -> None:
        """Keep at most `max_to_keep` of the periodic checkpoints of this run; None or 0 keeps all."""
        self.checkpointer = checkpointer
        self.period = period
        self.max_to_keep = max_to_keep

    def before_train(self) -> None:
        """Remember the periodic checkpoints that a resumed run has written before."""
        pattern = re.compile(r"model_(\d{7})\.pth")
        resumed = self.trainer.start_iter and self.checkpointer.save_to_disk
        names = os.listdir(self.checkpointer.save_dir) if resumed else []
        found = sorted(name for name in names if pattern.fullmatch(name))
        self._written = [name for name in found if int(name[6:13]) < self.trainer.start_iter]
        self._last = -1

    def save(self) -> None:
        """Save now, under the number of the iteration just finished, unless it is saved already.

        The main process writes, and removes old checkpoints when the new one is whole and marked as the last.
        """
        if self.trainer.iter in (self._last, self.trainer.max_iter):
            return
        self._last = self.trainer.iter
        name = f"model_{self.trainer.iter:07d}"
        self.checkpointer.save(name)
        self._written = [*(entry for entry in self._written if entry != f"{name}.pth"), f"{name}.pth"]
        if self.max_to_keep:
            for old in self._written[: -self.max_to_keep] if self.checkpointer.save_to_disk else []:
                Path(self.checkpointer.save_dir, old).unlink(missing_ok=True)
            self._written = self._written[-self.max_to_keep :]

    def after_step(self) -> None:
        """Save when it is time."""
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self.checkpointer.save("model_final")
            self._last = self.trainer.iter
        elif self.period > 0 and done % self.period == 0:
            self.save()


class NothingBetter(BaseException):
    """Ends a training by `train.patience`, in all processes."""


class Evaluation(hooks.EvalHook):
    """Detectron2's hook, which leaves out the evaluation after a training that was ended in its last iteration."""

    def __init__(self, period: int, evaluate: Callable[[], dict], is_exhausted: Callable[[int], bool]) -> None:
        """Evaluate each `period` iterations, and end the training where `is_exhausted(iteration)` says so."""
        super().__init__(period, evaluate)
        self._is_exhausted = is_exhausted

    def _do_eval(self) -> None:
        super()._do_eval()
        if self.trainer.iter < self.trainer.max_iter - 1 and self._is_exhausted(self.trainer.iter):
            raise NothingBetter

    def after_train(self) -> None:
        """Evaluate after the last iteration."""
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()


class BestWeights:
    """Keeps the weights with the best value of one metric as `model_best.pth`.

    The file holds the weights that were evaluated (the averaged ones where averaging is on) and how good they are, so
    that a resumed run does not replace them by worse ones. `best.json` beside it says the same, for people.
    """

    def __init__(self, checkpointer: Checkpointer, metric: str, mode: str, start_iter: int) -> None:
        """Find the best weights of a resumed run.

        Args:
            checkpointer: writes the weights.
            metric: as in metrics.json, e.g. "segm/AP".
            mode: "max" or "min".
            start_iter: of a resumed run, above 0. What a run found after the checkpoint that it resumes from counts
                too: its weights are there, and the resumed run finds them again.

        Raises:
            ValueError: nothing says how good an earlier `model_best.pth` is.
        """
        self.checkpointer = checkpointer
        self.metric = metric
        self.better = operator.gt if mode == "max" else operator.lt
        self.record = os.path.join(checkpointer.save_dir, "best.json")
        self.best: float | None = None
        self.iteration = -1
        found = self._earlier() if start_iter and metric else None
        if found and found["metric"] == metric:
            self.best, self.iteration = found["value"], int(found.get("iteration", -1))
        elif found:
            logger.warning(f"model_best.pth is the best by {found['metric']}: the first evaluation replaces it.")

    def _earlier(self) -> dict[str, Any] | None:
        """The record of the `model_best.pth` that is there."""
        path = os.path.join(self.checkpointer.save_dir, "model_best.pth")
        if not os.path.exists(path):
            return None
        try:
            content = read_file(path)
        except WeightsError as error:
            logger.warning(f"{error} The first evaluation writes it anew.")
            return None
        if "test" in self.checkpointer.changed_data(content):
            logger.warning(f"{path} is the best on other validation data: the first evaluation replaces it.")
            return None
        record = content.get("best")
        if record is None:  # of a run before model_best.pth held the record itself
            record = _read_record(self.record)
        if not _is_record(record):
            raise ValueError(
                f"{self.record} is missing or damaged, so that nothing says how good {path} is. Move that file away, "
                "and the next evaluation chooses anew."
            )
        if _read_record(self.record) != record:
            logger.warning(f"{self.record} is missing or damaged, and written anew from what {path} says.")
            self._write(record)
        return record

    def update(self, results: dict[str, float], iteration: int, model: nn.Module) -> None:
        """Compare the flat results of an evaluation of `model` after `iteration`, save where they are the best."""
        if self.metric not in results:
            raise KeyError(
                f"train.best.metric={self.metric} is not among the evaluated metrics: {', '.join(sorted(results))}."
            )
        value = results[self.metric]
        if math.isnan(value) or (self.best is not None and not self.better(value, self.best)):
            return
        self.best, self.iteration = value, iteration
        record = {"metric": self.metric, "value": value, "iteration": iteration}
        self.checkpointer.save("model_best", tag=False, only_model=True, model=model.state_dict(), best=record)
        self._write(record)
        logger.info(f"Best {self.metric} so far: {value:.4f} at iteration {iteration}.")

    def is_exhausted(self, iteration: int, patience: int) -> bool:
        """Whether nothing was better for `patience` iterations up to `iteration`; never with a patience of 0."""
        return patience > 0 and self.best is not None and iteration - self.iteration >= patience

    def _write(self, record: dict[str, Any]) -> None:
        write_atomically(self.record, json.dumps(record).encode())


def _read_record(path: str) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("metric"), str):
        return False
    return isinstance(record.get("value"), int | float) and math.isfinite(record["value"])


class WeightAveraging(HookBase):
    """Exponential moving average of the weights (Polyak averaging) with a short warm-up of the decay."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """`decay` in (0, 1), e.g. 0.999; after n steps at most (1 + n) / (10 + n) is used."""
        if not 0 < decay < 1:
            raise ValueError(f"train.ema.decay must be between 0 and 1, got {decay}.")

        def update(averages: list[torch.Tensor], current: list[torch.Tensor], _: torch.Tensor) -> None:
            steps = int(self.average.n_averaged)  # on the CPU; the argument is a copy on the device of the weights
            now = min(decay, (1 + steps) / (10 + steps))
            torch._foreach_lerp_(averages, current, 1 - now)

        self.source = model
        self.average = AveragedModel(model, multi_avg_fn=update)
        self.average.requires_grad_(False)

    def after_step(self) -> None:
        """Take the step's weights into the average."""
        self.average.update_parameters(self.source)
