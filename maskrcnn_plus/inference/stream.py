"""Frames of a camera, or of any iterator -> their objects, with the frames a second that are reached."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from maskrcnn_plus.errors import UserError
from maskrcnn_plus.inference.tracking import MaskTracker
from maskrcnn_plus.results.predictions import Predictions

if TYPE_CHECKING:
    from maskrcnn_plus.inference.predictor import Predictor

_RATE_FRAMES = 30  # of which the frames a second are the mean


@dataclass(frozen=True)
class StreamResult:
    """The objects of one frame of a stream.

    Attributes:
        number: of the frame as the source gave it, from 1; where frames were dropped, numbers are missing.
        time: seconds between the source's first frame and this one, as they arrived.
        frame: [H, W] or [H, W, 3] in RGB order.
        instances: as of `Predictor.predict`; with tracking also `track_ids` [N], int64, from 1.
        frames_per_second: that were predicted, a mean of the last 30 frames; 0 at the first frame.
        dropped: frames of the source before this one that were not predicted.
    """

    number: int
    time: float
    frame: np.ndarray
    instances: Predictions
    frames_per_second: float
    dropped: int


def stream(
    predictor: Predictor,
    source: int | str | os.PathLike | Iterable[np.ndarray],
    *,
    latest: bool | None = None,
    track: bool = False,
    input_format: str = "RGB",
    **options: Any,
) -> Generator[StreamResult, None, None]:
    """See `Predictor.stream`."""
    is_capture = isinstance(source, (int, str, os.PathLike))
    is_live = isinstance(source, int) or (isinstance(source, str) and "://" in source)
    frames = _captured(source) if is_capture else iter(source)
    reader = _LatestFrame(frames) if (is_live if latest is None else latest) else _EveryFrame(frames)
    tracker = MaskTracker() if track else None
    finished: deque[float] = deque(maxlen=_RATE_FRAMES)
    predicted = 0
    try:
        for number, at, frame in reader:
            instances = predictor.predict(frame, input_format="BGR" if is_capture else input_format, **options)
            frame = instances.image
            if tracker is not None:
                instances.track_ids = tracker.update(instances)
            finished.append(time.perf_counter())
            rate = (len(finished) - 1) / (finished[-1] - finished[0]) if len(finished) > 1 else 0.0
            predicted += 1
            yield StreamResult(number, at, frame, instances, rate, number - predicted)
    finally:
        reader.close()


def _captured(source: int | str | os.PathLike) -> Iterator[np.ndarray]:
    """Frames [H, W, 3] in BGR order of what OpenCV opens.

    Raises:
        UserError: it does not open, or gives no frame.
    """
    name = f"camera {source}" if isinstance(source, int) else os.fspath(source)
    capture = cv2.VideoCapture(source if isinstance(source, int) else name)
    try:
        count = 0
        while True:
            there, frame = capture.read()
            if not there:
                break
            count += 1
            yield frame
        if count == 0:
            raise UserError(f"{name}: no frame can be read. Is it connected, and not in use by another program?")
    finally:
        capture.release()


class _EveryFrame:
    """Frames with their number, from 1, and time, each asked for when the one before is done."""

    def __init__(self, frames: Iterator[np.ndarray]) -> None:
        self._frames = frames

    def __iter__(self) -> Iterator[tuple[int, float, np.ndarray]]:
        first = None
        for number, frame in enumerate(self._frames, start=1):
            now = time.perf_counter()
            first = now if first is None else first
            yield number, now - first, frame

    def close(self) -> None:
        """End the source, where it can be ended."""
        close = getattr(self._frames, "close", None)
        if close is not None:
            close()


class _LatestFrame(_EveryFrame):
    """The same, read by a thread: what arrived before the newest frame is dropped."""

    def __init__(self, frames: Iterator[np.ndarray]) -> None:
        super().__init__(frames)
        self._changed = threading.Condition()
        self._newest: tuple[int, float, np.ndarray] | None = None
        self._ended, self._error = False, None
        self._thread = threading.Thread(target=self._read, name="newest frame", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for item in super().__iter__():
                with self._changed:
                    if self._ended:
                        break
                    self._newest = item
                    self._changed.notify()
            super().close()
        except BaseException as error:  # raised where the frames are used
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify()

    def __iter__(self) -> Iterator[tuple[int, float, np.ndarray]]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._ended)
                item, self._newest = self._newest, None
            if item is None:
                break
            yield item
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop reading after the frame that is being read; does not wait for a camera that hangs."""
        with self._changed:
            self._ended = True
        self._thread.join(timeout=5)
