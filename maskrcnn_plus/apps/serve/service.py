"""What the page and the API share: uploads become jobs of the worker, and the page's results are kept for a while."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import HTTPException, Request
from starlette.concurrency import run_in_threadpool

from maskrcnn_plus.apps.serve.jobs import Job, JobCancelled
from maskrcnn_plus.apps.serve.metrics import Metrics
from maskrcnn_plus.apps.serve.settings import Settings
from maskrcnn_plus.apps.serve.uploads import Upload, discard, list_images, receive
from maskrcnn_plus.apps.serve.worker import QueueFull, Worker
from maskrcnn_plus.data.channels import get_rule
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.results.predictions import Predictions


@dataclass
class Kept:
    """An image of the page, with its job."""

    job: Job
    upload: Upload
    used: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """For people."""
        return ", ".join(filter(None, (self.upload.name, self.job.image.part)))

    @property
    def error(self) -> str:
        """Why its prediction failed."""
        return self.upload.explain(self.job.future.exception())


class Service:
    """A model, its worker, and the images that the page keeps.

    Attributes:
        folder: temporary folder of all uploads, removed by `close`.
    """

    def __init__(self, predictor: Predictor, settings: Settings) -> None:
        """Prepare; `start` begins.

        Raises:
            ValueError: a setting is out of range.
        """
        self.predictor, self.settings, self.metrics = predictor, settings, Metrics()
        self.worker = Worker(predictor, settings, self.metrics)
        self._temporary = tempfile.TemporaryDirectory(prefix="maskrcnn_plus_serve_")
        self.folder = Path(self._temporary.name)
        self._kept: dict[str, Kept] = {}
        self._lock = threading.Lock()
        self.metrics.watch(
            "uploads_in_progress", "Uploads received, waiting or predicted", lambda: self.worker.num_taken
        )
        self.metrics.watch("images_kept", "Images whose results the page keeps", lambda: len(self._kept))

    def start(self) -> None:
        """Begin to predict."""
        self.worker.start()

    def close(self) -> None:
        """Give up all work and remove all files."""
        self.worker.close()
        self._temporary.cleanup()

    async def submit(
        self, request: Request, name: str, page: int | None = None, all_pages: bool = False
    ) -> tuple[Upload, list[Job]]:
        """Receive an image and queue it.

        Args:
            request: as for `receive`.
            name: of the file, where the request does not say it.
            page: of a stack, from 1.
            all_pages: queue all of a stack.

        Returns:
            The upload, which is to be left by the caller, and its jobs.

        Raises:
            HTTPException: 400, 408 or 413 with what is wrong; 429 where too much waits.
        """
        try:
            self.worker.reserve()
        except QueueFull as error:
            await discard(request)
            raise HTTPException(429, str(error), {"Retry-After": str(error.retry_after)}) from error
        upload = None
        try:
            upload = await receive(request, self.folder, name, self.settings)
            rule = get_rule(self.predictor.mapper)
            images, size = await run_in_threadpool(list_images, upload, rule, self.settings)
            if not all_pages:
                images = [_choose_page(upload.name, images, page)]
        except BaseException as error:
            self.worker.release()
            if upload is not None:
                upload.leave()
            if isinstance(error, HTTPException) and error.status_code == 413:
                await discard(request)
            raise
        jobs = [Job(image, size) for image in images]
        self.worker.submit(jobs)
        return upload, jobs

    async def wait_for(self, request: Request, upload: Upload, job: Job) -> Predictions:
        """The result of a job, which is given up when the client goes away.

        Raises:
            HTTPException: 400 for an image that cannot be used, 499, 503 or 500.
        """
        future = asyncio.wrap_future(job.future)
        try:
            while not (await asyncio.wait({future}, timeout=1))[0]:
                if await request.is_disconnected():
                    raise HTTPException(499, "The client went away.")
            return future.result()
        except asyncio.CancelledError:
            if job.future.cancelled():
                raise HTTPException(503, "The server is stopping.") from None
            raise
        except HTTPException:
            raise
        except Exception as error:  # of the decoder, the model or the memory
            raise to_http(upload, error) from error
        finally:
            job.cancel()

    def keep(self, upload: Upload, jobs: list[Job]) -> list[str]:
        """Keep an upload's images for the page; gives their ids, which nobody can guess."""
        ids = [secrets.token_urlsafe(16) for _ in jobs]
        upload.add_users(len(jobs) - 1)
        with self._lock:
            self._kept |= {key: Kept(job, upload) for key, job in zip(ids, jobs, strict=True)}
        self.forget_old()
        return ids

    def get(self, key: str) -> Kept:
        """A kept image.

        Raises:
            HTTPException: 404, it is not kept any more.
        """
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                kept.used = time.monotonic()
        if kept is None:
            raise HTTPException(404, "This image is not kept any more: drop it again.")
        return kept

    def forget(self, key: str) -> None:
        """Give an image up and remove its file."""
        with self._lock:
            kept = self._kept.pop(key, None)
        if kept is not None:
            kept.job.cancel()
            kept.upload.leave()

    def forget_old(self) -> None:
        """Forget what was not looked at for long, and of what is finished the oldest, where it is too much."""
        now = time.monotonic()
        with self._lock:
            by_age = sorted(self._kept, key=lambda key: self._kept[key].used)
            finished = [key for key in by_age if self._kept[key].job.future.done()]
            old = {key for key in by_age if now - self._kept[key].used > self.settings.keep_seconds}
            old |= set(finished[: max(len(by_age) - self.settings.max_kept, 0)])
        for key in old:
            self.forget(key)


def _choose_page(name, images, page):
    if len(images) == 1 and page in (None, 1):
        return images[0]
    if page is None:
        raise HTTPException(400, f"{name} holds {len(images)} images: choose one with ?page=1 to ?page={len(images)}.")
    if page > len(images):
        raise HTTPException(400, f"{name} has no page {page}: it holds {len(images)} image{'s' * (len(images) > 1)}.")
    return images[page - 1]


def to_http(upload: Upload, error: BaseException, failed: str = "The prediction failed: ") -> HTTPException:
    """What to answer for an error of a job, or of what reads its image again."""
    if isinstance(error, JobCancelled):
        return HTTPException(503, "The prediction was given up.")
    if isinstance(error, (ValueError, OSError)):
        return HTTPException(400, upload.explain(error))
    return HTTPException(500, f"{failed}{upload.explain(error)}")
