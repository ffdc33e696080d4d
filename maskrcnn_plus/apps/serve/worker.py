"""The one thread that runs the model, and the queue before it.

An upload takes a slot before its first byte is read and holds it until its last image is predicted: so work that waits,
and the disk that it takes, are bounded. Without a free slot it is refused at once (`QueueFull`).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence

from maskrcnn_plus.allocator import HeapLimit
from maskrcnn_plus.apps.predict_files.image_predictor import ImagePredictor
from maskrcnn_plus.apps.serve.jobs import Job, JobCancelled
from maskrcnn_plus.apps.serve.metrics import Metrics
from maskrcnn_plus.apps.serve.prediction import predict_jobs
from maskrcnn_plus.apps.serve.settings import Settings
from maskrcnn_plus.data.limits import pixel_limit
from maskrcnn_plus.inference.predictor import Predictor

logger = logging.getLogger(__name__)


class QueueFull(Exception):
    """No more work is taken now.

    Attributes:
        retry_after: seconds after which it may be tried again.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"The queue is full; try again in {retry_after} s.")
        self.retry_after = retry_after


class Worker:
    """Predicts jobs in the order in which they came, in a thread of its own; small ones that wait share a batch.

    Attributes:
        num_taken: slots that are taken.
    """

    def __init__(self, predictor: Predictor, settings: Settings, metrics: Metrics) -> None:
        """Take the model; `start` begins.

        Args:
            predictor: used by the thread alone.
            settings: see there.
            metrics: are told of each image.

        Raises:
            ValueError: `settings.tile` is out of range.
        """
        self.settings, self.metrics = settings, metrics
        self._images = ImagePredictor(predictor, settings.tile)
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self.num_taken = 0
        self._closed = False
        self._seconds = 1.0  # an image, of the last ones
        self._running: list[Job] = []
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Begin to predict."""
        self._thread.start()

    def close(self) -> None:
        """Give up what waits and what runs, and end; a tile or a batch is finished first."""
        with self._changed:
            self._closed = True
            jobs = [*self._waiting, *self._running]
            self._changed.notify_all()
        for job in jobs:
            job.cancel()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether jobs are taken."""
        return self._thread.is_alive() and not self._closed

    def reserve(self) -> None:
        """Take a slot, which `submit` or `release` gives back.

        Raises:
            QueueFull: there is none.
        """
        with self._changed:
            if self.num_taken >= self.settings.max_waiting:
                raise QueueFull(max(1, math.ceil(self._seconds * (1 + len(self._waiting)))))
            self.num_taken += 1

    def release(self) -> None:
        """One slot is free again."""
        with self._changed:
            self.num_taken -= 1

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue the images of an upload, whose slot is given back when all are finished."""
        left = len(jobs)

        def finished(_: object) -> None:
            nonlocal left
            with self._changed:
                left -= 1
                self.num_taken -= left == 0

        for job in jobs:
            job.future.add_done_callback(finished)
        with self._changed:
            closed = self._closed
            if not closed:
                self._waiting.extend(jobs)
                self._changed.notify_all()
        if closed:
            for job in jobs:
                job.cancel()

    def num_ahead(self, job: Job) -> int:
        """Jobs that wait before this one."""
        with self._changed:
            return next((index for index, each in enumerate(self._waiting) if each is job), 0)

    def _take(self) -> list[Job]:
        """The next job, with those that share its batch; empty at the end."""
        with self._changed:
            while True:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return []
                first = self._waiting[0]
                group = [first]
                if first.is_small:
                    small = (job for job in self._waiting if job.is_small)
                    group = [job for job, _ in zip(small, range(self.settings.batch_size), strict=False)]
                taken = set(map(id, group))
                self._waiting = deque(job for job in self._waiting if id(job) not in taken)
                self._running = [job for job in group if job.future.set_running_or_notify_cancel()]
                self.metrics.images.labels("cancelled").inc(len(group) - len(self._running))
                if self._running:
                    return self._running

    def _run(self) -> None:
        limit_heap = HeapLimit()
        with pixel_limit(self.settings.max_pixels):
            while jobs := self._take():
                start = time.perf_counter()
                self._predict(jobs)
                seconds = time.perf_counter() - start
                self.metrics.seconds.observe(seconds)
                self.metrics.batch_size.observe(len(jobs))
                self._seconds += 0.2 * (seconds / len(jobs) - self._seconds)
                self._running = jobs = []  # results are kept by those who asked for them
                limit_heap()

    def _predict(self, jobs: list[Job]) -> None:
        """Finish jobs. What fails in a batch is predicted alone, so that one bad image spoils none beside it."""
        if len(jobs) > 1:
            try:
                results = predict_jobs(self._images, jobs)
            except Exception:  # of any of the images; which one, each alone will tell
                results = []
            for job, found in zip(jobs, results, strict=False):
                self._finish(job, found)
            jobs = [] if results else jobs
        for job in jobs:
            try:
                job.on_tile(0, 1)
                (found,) = predict_jobs(self._images, [job])
            except JobCancelled as error:
                self.metrics.images.labels("cancelled").inc()
                job.future.set_exception(error)
            except Exception as error:  # of the decoder, the model or the memory: the next image may be all right
                self.metrics.images.labels("failed").inc()
                if not isinstance(error, (ValueError, OSError)):
                    logger.exception("prediction of an image of %d x %d pixels", *job.size)
                job.future.set_exception(error)
            else:
                self._finish(job, found)

    def _finish(self, job: Job, found: object) -> None:
        self.metrics.images.labels("done").inc()
        self.metrics.objects.inc(len(found))
        job.future.set_result(found)
