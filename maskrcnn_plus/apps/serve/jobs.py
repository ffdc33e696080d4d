"""A prediction that was asked for: its image, how far it is, and its result."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from maskrcnn_plus.apps.predict_files.sources import SourceImage

if TYPE_CHECKING:
    from maskrcnn_plus.results.predictions import Predictions

SMALL = 2**20
"""Images of at most so many pixels share a batch."""


class JobCancelled(Exception):
    """Nobody wants the result any more."""


class Job:
    """One image to predict.

    Attributes:
        image: the image.
        size: (H, W) in pixels.
        future: of the `Predictions`.
        tiles: (done, all) while it is predicted by tiles, else None.
        note: what a person should know of the result; "" for nothing.
    """

    def __init__(self, image: SourceImage, size: tuple[int, int]) -> None:
        self.image, self.size = image, size
        self.future: Future[Predictions] = Future()
        self.tiles: tuple[int, int] | None = None
        self.note = ""
        self._stop = threading.Event()

    @property
    def is_small(self) -> bool:
        """Whether it may share a batch."""
        return self.size[0] * self.size[1] <= SMALL

    @property
    def state(self) -> str:
        """`waiting`, `running`, `done`, `failed` or `cancelled`."""
        if not self.future.done():
            return "running" if self.future.running() else "waiting"
        if self.future.cancelled() or isinstance(self.future.exception(), JobCancelled):
            return "cancelled"
        return "failed" if self.future.exception() else "done"

    def cancel(self) -> None:
        """Give it up: at once while it waits, before the next tile while it is predicted."""
        self._stop.set()
        self.future.cancel()

    def on_tile(self, done: int, count: int) -> None:
        """Note the progress.

        Raises:
            JobCancelled: it was given up.
        """
        if self._stop.is_set():
            raise JobCancelled
        self.tiles = done, count
