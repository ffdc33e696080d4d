"""A training that ends in time: it gets fewer iterations where the machine is slower than was expected."""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

logger = logging.getLogger(__name__)

_PERIOD = 5  # iterations from one estimate to the next
_RECENT = 20  # iterations whose mean says how long one takes
_WORTH_SAYING = 0.05


class TimeLimit(HookBase):
    """Sets `trainer.max_iter`, and the learning rate schedule with it, to what fits into a given time.

    An iteration is expected to take the mean time of the last ones, and what came between them so far (evaluations,
    checkpoints) to go on at its rate. Of several processes the first decides. The time of resumed runs is counted
    together; what happens after the last iteration is not part of it. It ends late by an evaluation or `_PERIOD`
    iterations at most.
    """

    def __init__(self, seconds: float, most: int, schedule: hooks.LRScheduler) -> None:
        """Start with nothing measured.

        Args:
            seconds: of the training and the evaluations in it.
            most: iterations; there are not more where the time allows it.
            schedule: of the learning rate, by a multiplier that is a function of the share that is done.
        """
        self._seconds, self._most, self._schedule = seconds, most, schedule
        self._earlier = self._spent = self._in_steps = 0.0
        self._steps: deque[float] = deque(maxlen=_RECENT)
        self._said = most

    def max_iter(self, done: int) -> int:
        """Iterations of the whole training, of which `done` are done."""
        if not self._steps:
            return self._most
        each = statistics.fmean(self._steps) + (self._spent - self._in_steps) / done
        return min(self._most, done + max(int((self._seconds - self._spent) / each), 0))

    def before_train(self) -> None:
        """Start the clock."""
        self._begin = time.monotonic()

    def before_step(self) -> None:
        """Start the clock of an iteration."""
        self._step_begin = time.monotonic()

    def after_step(self) -> None:
        """Estimate anew each `_PERIOD` iterations. Stands before the hooks that ask for `trainer.max_iter`."""
        now, done = time.monotonic(), self.trainer.iter + 1
        self._steps.append(now - self._step_begin)
        self._in_steps += self._steps[-1]
        self._spent = self._earlier + now - self._begin
        if done % _PERIOD:
            return
        most = comm.all_gather(self.max_iter(done))[0]
        if abs(most - self._said) >= _WORTH_SAYING * self._most or most == done < self._said:
            logger.info(
                f"The training goes to iteration {most} of {self._most}: one takes {statistics.fmean(self._steps):.2g} "
                f"s now, and {self._spent / 60:.1f} of {self._seconds / 60:.1f} minutes are over (train.max_hours)."
            )
            self._said = most
        self.trainer.max_iter = self._schedule.scheduler._max_iter = most

    def state_dict(self) -> dict[str, Any]:
        """What was measured."""
        return {"spent": self._spent, "in_steps": self._in_steps, "steps": list(self._steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Counterpart of `state_dict`."""
        self._earlier = self._spent = float(state_dict["spent"])
        self._in_steps = float(state_dict["in_steps"])
        self._steps.extend(float(each) for each in state_dict["steps"])
