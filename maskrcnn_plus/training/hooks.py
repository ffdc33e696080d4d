"""Hooks beside Detectron2's own: checkpoints, the best weights, averaged weights, and a clean stop on signals."""

from __future__ import annotations

import json
import logging
import math
import operator
import os
import re
import signal
from collections.abc import Callable

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.optim.swa_utils import AveragedModel

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.checkpoints.checkpointer import Checkpointer

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
        names = os.listdir(self.checkpointer.save_dir) if self.trainer.start_iter else []
        found = sorted(name for name in names if pattern.fullmatch(name))
        self._written = [name for name in found if int(name[6:13]) < self.trainer.start_iter]

    def save(self) -> None:
        """Save now, under the number of the iteration just finished."""
        name = f"model_{self.trainer.iter:07d}"
        self.checkpointer.save(name)
        self._written = [*(entry for entry in self._written if entry != f"{name}.pth"), f"{name}.pth"]
        if self.max_to_keep:
            for old in self._written[: -self.max_to_keep]:
                path = os.path.join(self.checkpointer.save_dir, old)
                if os.path.exists(path):
                    os.remove(path)
            self._written = self._written[-self.max_to_keep :]

    def after_step(self) -> None:
        """Save when it is time."""
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self.checkpointer.save("model_final")
        elif self.period > 0 and done % self.period == 0:
            self.save()


class BestWeights:
    """Keeps the weights with the best value of one metric as `model_best.pth`.

    The file holds the weights that were evaluated (the averaged ones where averaging is on) and nothing else.
    `best.json` beside it says how good they are, so that a resumed run does not replace them by worse ones.
    """

    def __init__(self, checkpointer: Checkpointer, metric: str, mode: str, start_iter: int) -> None:
        """`metric` as in metrics.json, e.g. "segm/AP"; `mode` is "max" or "min"; a resumed run has `start_iter` > 0."""
        if mode not in ("max", "min"):
            raise ValueError(f'train.best.mode must be "max" or "min", got {mode!r}.')
        self.checkpointer = checkpointer
        self.metric = metric
        self.better = operator.gt if mode == "max" else operator.lt
        self.record = os.path.join(checkpointer.save_dir, "best.json")
        self.best: float | None = None
        if start_iter and os.path.exists(self.record):
            with open(self.record) as file:
                found = json.load(file)
            if found["metric"] == metric and found["iteration"] < start_iter:
                self.best = found["value"]

    def update(self, results: dict[str, float], iteration: int, model: nn.Module) -> None:
        """Compare the flat results of an evaluation of `model` after `iteration`, save where they are the best."""
        if self.metric not in results:
            raise KeyError(
                f"train.best.metric={self.metric} is not among the evaluated metrics: {', '.join(sorted(results))}."
            )
        value = results[self.metric]
        if math.isnan(value) or (self.best is not None and not self.better(value, self.best)):
            return
        self.best = value
        self.checkpointer.save("model_best", tag=False, only_model=True, model=model.state_dict())
        record = {"metric": self.metric, "value": value, "iteration": iteration}
        write_atomically(self.record, json.dumps(record).encode())
        logger.info(f"Best {self.metric} so far: {value:.4f} at iteration {iteration}.")


class WeightAveraging(HookBase):
    """Exponential moving average of the weights (Polyak averaging) with a short warm-up of the decay."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """`decay` in (0, 1), e.g. 0.999; after n steps at most (1 + n) / (10 + n) is used."""
        if not 0 < decay < 1:
            raise ValueError(f"train.ema.decay must be between 0 and 1, got {decay}.")

        def update(averages: list[torch.Tensor], current: list[torch.Tensor], steps: torch.Tensor) -> None:
            now = min(decay, (1 + int(steps)) / (10 + int(steps)))
            torch._foreach_lerp_(averages, current, 1 - now)

        self.source = model
        self.average = AveragedModel(model, multi_avg_fn=update)
        self.average.requires_grad_(False)

    def after_step(self) -> None:
        """Take the step's weights into the average."""
        self.average.update_parameters(self.source)


class TrainingInterrupted(BaseException):
    """SIGINT or SIGTERM ended the training after a checkpoint was written."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class StopOnSignal(HookBase):
    """SIGINT (Ctrl-C) and SIGTERM: finish the iteration, save, end. The last hook; a second signal ends at once."""

    def __init__(self, save: Callable[[], None]) -> None:
        """`save` writes the checkpoint (on the main process)."""
        self._save = save
        self._received = 0
        self._pid = os.getpid()
        self._previous = {}

    def before_train(self) -> None:
        """Install the handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)

    def _handle(self, signum: int, frame: object) -> None:
        if os.getpid() != self._pid:  # a data loading process inherited the handler
            if signum == signal.SIGTERM:
                os._exit(128 + signum)
            return
        if self._received:
            raise KeyboardInterrupt
        self._received = signum
        os.write(2, b"\nStopping after this iteration; once more stops at once, without a checkpoint.\n")

    def after_step(self) -> None:
        """Save and end where a signal came, to any of the processes."""
        received = self._received
        if comm.get_world_size() > 1:
            received = max(comm.all_gather(received))
        if received:
            if self.trainer.iter + 1 < self.trainer.max_iter:  # otherwise the final checkpoint was just written
                self._save()
            comm.synchronize()
            raise TrainingInterrupted(received)

    def check(self) -> None:
        """End an evaluation in the middle: the iteration before it is saved first."""
        if self._received:
            self.after_step()

    def after_train(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
