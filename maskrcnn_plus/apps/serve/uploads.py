"""Uploaded files: received within limits into a temporary folder, and looked at before they wait for the model."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePosixPath

from fastapi import HTTPException, Request
from starlette.concurrency import run_in_threadpool
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from maskrcnn_plus.apps.predict_files.inputs import list_inputs
from maskrcnn_plus.apps.predict_files.sources import SourceImage, iterate_images
from maskrcnn_plus.apps.serve.settings import Settings
from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.frames import ANIMATION_SUFFIXES, VIDEO_SUFFIXES
from maskrcnn_plus.data.images import read_image_size
from maskrcnn_plus.data.limits import pixel_limit, reading_by_parts
from maskrcnn_plus.errors import describe

MAX_IMAGES = 64
"""Pages of a stack that one upload may have."""

_LONGEST_NAME = 120  # bytes
_NOT_IN_NAMES = frozenset('/\\:*?"<>|')


class Upload:
    """A file in a folder of its own, which is removed when nobody uses it any more.

    Attributes:
        path: the file.
        name: of the file, as the client gave it, or what of it can be a name of a file.
    """

    def __init__(self, parent: Path, name: str) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=parent))
        self.name = safe_name(name)
        self.path = self.folder / self.name
        self._users, self._lock = 1, threading.Lock()

    def add_users(self, count: int) -> None:
        """So many more must `leave` before it is removed."""
        with self._lock:
            self._users += count

    def leave(self) -> None:
        """One user less; the last one removes the folder."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            shutil.rmtree(self.folder, ignore_errors=True)

    def explain(self, error: BaseException) -> str:
        """An error for the client, without the place of the file on this machine."""
        text = describe(error) if isinstance(error, Exception) else str(error)
        return text.replace(str(self.path), self.name).replace(f"{self.folder}{os.sep}", "")


def safe_name(text: str) -> str:
    """The last part of a client's path as a file name: no separators, no control characters, not hidden, not long."""
    base = PurePosixPath(text.replace("\\", "/")).name
    base = "".join("_" if each in _NOT_IN_NAMES or not each.isprintable() else each for each in base).lstrip(". ")
    stem, suffix = os.path.splitext(base)
    suffix = suffix if len(suffix) <= 10 else ""
    room = _LONGEST_NAME - len(suffix.encode())
    stem = stem.encode("utf-8", errors="replace")[:room].decode("utf-8", errors="ignore")
    return f"{stem}{suffix}" if stem else "image"


async def receive(request: Request, parent: Path, name: str, settings: Settings) -> Upload:
    """Write the body of a request, or the one file of a form, to a new folder.

    Args:
        request: its body is the file, or a form (multipart/form-data) with one file.
        parent: folder of the folder.
        name: of a raw body.
        settings: its limits.

    Raises:
        HTTPException: 400 without a file, 408 for a client that stops, 413 for a file that is too large, 507 where
            this machine has no room for it.
    """
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > settings.max_bytes + 4096:  # of a form around the file
        raise _too_many_bytes(settings)
    form = request.headers.get("content-type", "").lower().startswith("multipart/form-data")
    body = _bounded(request, settings)
    upload = None
    try:
        if form:
            data = await MultiPartParser(request.headers, body, max_files=1, max_fields=8).parse()
            try:
                files = [value for value in data.values() if not isinstance(value, str)]
                if not files:
                    raise HTTPException(400, "The form has no file: send one image, such as curl -F file=@image.png.")
                upload = Upload(parent, files[0].filename or name)
                await run_in_threadpool(_copy, files[0].file, upload.path)
            finally:
                await data.close()
        else:
            upload = Upload(parent, name)
            with open(upload.path, "wb") as file:
                async for chunk in body:
                    file.write(chunk)
        if upload.path.stat().st_size == 0:
            raise HTTPException(400, "There is no image: send its bytes as the body, or as the file of a form.")
    except MultiPartException as error:
        raise HTTPException(400, f"The form cannot be read: {error.message}") from error
    except BaseException as error:
        if upload is not None:
            upload.leave()
        if isinstance(error, ClientDisconnect):
            raise HTTPException(400, "The client went away.") from error
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise HTTPException(507, f"This server cannot keep the file while it is predicted: {reason}.") from error
        raise
    return upload


def _copy(source, path: Path) -> None:
    with open(path, "wb") as file:
        shutil.copyfileobj(source, file)


async def _bounded(request: Request, settings: Settings) -> AsyncIterator[bytes]:
    """Pieces of a body, until there are too many or none comes for too long."""
    count, pieces = 0, request.stream()
    while True:
        try:
            async with asyncio.timeout(settings.receive_seconds):
                piece = await anext(pieces, None)
        except TimeoutError as error:
            raise HTTPException(408, f"Nothing came for {settings.receive_seconds:g} s.") from error
        if piece is None:
            return
        count += len(piece)
        if count > settings.max_bytes + 4096:
            raise _too_many_bytes(settings)
        yield piece


async def discard(request: Request, seconds: float = 2) -> None:
    """Read what a client still sends, for a while: one that is cut off while it sends may never see the answer."""
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):  # the last where all of it was read before
        async with asyncio.timeout(seconds):
            async for _ in request.stream():
                pass


def _too_many_bytes(settings: Settings) -> HTTPException:
    return HTTPException(
        413,
        f"The file has more than {settings.max_bytes / 2**20:g} MB, which this server takes at most (--max-mb); "
        "tools/predict.py has no such limit.",
    )


def list_images(upload: Upload, rule: ChannelRule, settings: Settings) -> tuple[list[SourceImage], tuple[int, int]]:
    """The images of an uploaded file, by its header.

    Args:
        upload: the file.
        rule: by which the model's channels are chosen.
        settings: its limits.

    Returns:
        The image, or the pages of a stack; and their size (H, W).

    Raises:
        HTTPException: 400 for what cannot be read, 413 for too many pixels or pages.
    """
    if upload.name.lower().endswith(VIDEO_SUFFIXES):
        raise HTTPException(400, f"{upload.name}: videos are predicted by tools/predict.py, not here.")
    try:
        with pixel_limit(2**62), reading_by_parts():  # so that what is too large is told from what is damaged
            size = read_image_size(str(upload.path))
            if size[0] * size[1] > settings.max_pixels:
                raise HTTPException(
                    413,
                    f"{upload.name}: {size[1]} x {size[0]} pixels are more than the {settings.max_pixels} that this "
                    "server takes (--max-pixels).",
                )
            file = list_inputs([str(upload.path)])[0]
            images = list(islice(iterate_images(file, rule), MAX_IMAGES + 1))
    except (ValueError, OSError) as error:
        raise HTTPException(400, upload.explain(error)) from error
    if images[0].number and upload.name.lower().endswith(ANIMATION_SUFFIXES):
        raise HTTPException(400, f"{upload.name}: animations are predicted by tools/predict.py, not here.")
    if len(images) > MAX_IMAGES:
        raise HTTPException(
            413,
            f"{upload.name}: a stack of more than {MAX_IMAGES} images; tools/predict.py takes stacks of any length.",
        )
    return images, size
