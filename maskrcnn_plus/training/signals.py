"""SIGINT and SIGTERM end a training or an evaluation cleanly, in one process or in several.

Processes agree on stopping by a collective at two kinds of places, which all of them reach together: the end of an
iteration, and the end of an evaluation's images, before its evaluators do collectives of their own. In between, a
process that got a signal says so in the store of the process group, which is no collective, and the others look there
before each image and take no more.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_numbers = itertools.count()


class TrainingInterrupted(BaseException):
    """SIGINT or SIGTERM ended a training, after a checkpoint was written, or an evaluation."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class StopSignals:
    """Takes SIGINT (Ctrl-C) and SIGTERM as a context manager; a second signal ends at once."""

    def __init__(self) -> None:
        self._key = f"maskrcnn_plus/stop/{next(_numbers)}"  # all processes count alike
        self._received = 0
        self._since = 0.0
        self._told = False
        self._pid = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, signum: int, frame: object) -> None:
        if os.getpid() != self._pid:  # a data loading process inherited the handler
            if signum == signal.SIGTERM:
                os._exit(128 + signum)
            return
        if self._received:
            # Ctrl-C reaches the processes of torchrun twice: from the terminal and from torchrun.
            if time.monotonic() - self._since > 1:
                raise KeyboardInterrupt
            return
        self._received, self._since = signum, time.monotonic()
        os.write(2, b"\nStopping after this iteration or image; once more stops at once, without a checkpoint.\n")

    def requested(self) -> bool:
        """Whether any process got a signal; may be asked anywhere, by any process."""
        if comm.get_world_size() == 1:
            return bool(self._received)
        store = dist.distributed_c10d._get_default_store()  # PyTorch has no other way to it
        if self._received and not self._told:
            store.set(self._key, str(self._received))
            self._told = True
        return bool(self._received) or store.check([self._key])

    def agree(self) -> None:
        """End here where any process got a signal; a collective.

        Raises:
            TrainingInterrupted: in all processes.
        """
        received = max(comm.all_gather(self._received))
        if received:
            raise TrainingInterrupted(received)


class StopOnSignal(HookBase):
    """Ends the training after the iteration in which a signal came, saved. The last hook."""

    def __init__(self, signals: StopSignals, save: Callable[[], None]) -> None:
        """`save` writes a checkpoint of the iteration, unless there is one."""
        self._signals = signals
        self._save = save

    def after_step(self) -> None:
        """Save and end where a signal came, to any of the processes."""
        try:
            self._signals.agree()
        except TrainingInterrupted:
            self._save()
            comm.synchronize()
            raise


class StoppableLoader:
    """A data loader that ends early when a process got a signal."""

    def __init__(self, loader: Iterable[list[dict]], signals: StopSignals) -> None:
        self.loader = loader
        self.signals = signals

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict]]:
        try:
            for batch in self.loader:
                if self.signals.requested():
                    return
                yield batch
        except RuntimeError as error:  # a signal to the whole group ends the processes that load, too
            if "DataLoader worker" not in str(error) or not self.signals.requested():
                raise


class StoppableEvaluators(DatasetEvaluators):
    """Evaluators that are not asked for results when a process got a signal, as images are missing then."""

    def __init__(self, evaluators: list[DatasetEvaluator], signals: StopSignals) -> None:
        super().__init__(evaluators)
        self.signals = signals

    def evaluate(self) -> dict[str, Any]:
        """The results; all processes come here once, whatever part of the images they have seen.

        Raises:
            TrainingInterrupted: in all processes, where one got a signal.
        """
        self.signals.agree()
        return super().evaluate()
