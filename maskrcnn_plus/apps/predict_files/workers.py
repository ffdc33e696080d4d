"""Several processes of one machine that predict the files of one run, each with its own model and threads."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import cv2
import torch

from maskrcnn_plus.allocator import keep_freed_memory
from maskrcnn_plus.apps.predict_files.file_predictor import FilePredictor, RunSummary
from maskrcnn_plus.apps.predict_files.inputs import InputFile
from maskrcnn_plus.apps.predict_files.prediction_loop import FileOptions
from maskrcnn_plus.apps.predict_files.records import Records
from maskrcnn_plus.apps.predictor_source import PredictorSource
from maskrcnn_plus.errors import UserError


@dataclass(frozen=True)
class Workers:
    """Processes beside this one.

    Attributes:
        number: of processes.
        source: of the predictor that each builds.
        threads: of each; None shares the cores that this process may use.
    """

    number: int
    source: PredictorSource
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError(f"workers is {self.number}, it must be at least 1")


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_of_cores(processes: int) -> int:
    """Threads of each of several processes, at least 1 and no more than `OMP_NUM_THREADS` says."""
    cores = count_cores()
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return max(min(cores // processes, int(limit) if limit.isdigit() else cores), 1)


def predict_in_processes(
    workers: Workers,
    files: Sequence[InputFile],
    options: FileOptions,
    records: Records,
    advance: Callable[[int, int], object],
) -> RunSummary:
    """Predict files in several processes; see `FilePredictor.run`.

    After an interrupt (Ctrl-C) each process finishes its batch.

    Raises:
        UserError: a process was killed.
        OSError: a result cannot be written.
    """
    threads = workers.threads or share_of_cores(workers.number)
    # A process is forked off one that has imported everything: cheaper than a new one, and safe beside threads.
    context = multiprocessing.get_context("forkserver")
    start = (workers.source, options, records, threads)
    total = RunSummary(num_left=len(files))
    batches = (files[k : k + options.batch_size] for k in range(0, len(files), options.batch_size))
    with ProcessPoolExecutor(workers.number, context, _start, start) as pool:
        running: dict[Future[RunSummary], Sequence[InputFile]] = {}

        def take(futures: Sequence[Future[RunSummary]]) -> None:
            for future in futures:
                batch = running.pop(future)
                found = future.result()
                total.add(found)
                total.num_left -= len(batch)
                seen = max(found.num_images + found.num_before + len(found.failures), len(batch))
                advance(seen - len(batch), seen)

        try:
            for batch in batches:
                running[pool.submit(_predict, batch)] = batch
                if len(running) >= 2 * workers.number:  # busy processes, without a queue of millions
                    take(list(wait(running, return_when=FIRST_COMPLETED).done))
            while running:
                take(list(wait(running, return_when=FIRST_COMPLETED).done))
        except KeyboardInterrupt:
            total.interrupted = True
            take([future for future in list(running) if not future.cancel()])
        except BrokenProcessPool as error:
            raise UserError(
                "A worker process ended unexpectedly, most often for lack of memory: try fewer --workers or a smaller "
                "--batch. What is done is kept; the same command goes on."
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    total.failures.sort(key=_order(files))
    return total


def _order(files: Sequence[InputFile]) -> Callable[[tuple[str, str]], int]:
    """Sort key of failures: the place of their file, which their name begins with."""
    places = {file.path: file.position for file in files}
    return lambda failure: places.get(failure[0], places.get(failure[0].rpartition(", ")[0], 0))


_worker: FilePredictor | None = None


def _start(source: PredictorSource, options: FileOptions, records: Records, threads: int) -> None:
    """Set up a process: its threads and its model. Interrupts are the parent's business."""
    global _worker
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    predictor = source.build()
    if predictor.device.type == "cpu":
        keep_freed_memory()
    _worker = FilePredictor(predictor, options, records)


def _end_with_parent() -> None:
    """A killed parent leaves no process behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _predict(files: Sequence[InputFile]) -> RunSummary:
    _worker.summary = RunSummary()
    _worker.run(files)
    return _worker.summary
