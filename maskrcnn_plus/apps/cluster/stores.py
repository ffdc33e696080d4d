"""Folders of files, here or on an object store, whose files appear whole and which may be away for a while.

Addresses are local paths, those of pyarrow (`s3://`, `gs://`, `hdfs://`), and of any file system that fsspec knows. An
object store shows an object when it has all of it; elsewhere a file is written under another name and moved.
"""

from __future__ import annotations

import errno
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from pyarrow import ArrowInvalid, ArrowNotImplementedError, NativeFile
from pyarrow import fs as arrow

from maskrcnn_plus.atomic import TEMPORARY, write_atomically
from maskrcnn_plus.errors import UserError, first_line

T = TypeVar("T")

PATIENCE = 120.0
"""Seconds that a store may be away before a job gives up."""

_FINAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR}
_REFUSED = ("ACCESS_DENIED", "AccessDenied", "INVALID_ACCESS_KEY", "SIGNATURE_DOES_NOT_MATCH", "NO_SUCH_BUCKET")
_WHOLE_AT_ONCE = ("s3", "gcs", "abfs")


class StoreError(OSError):
    """A store that does not answer; no fault of the file that was asked for."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a store: its address, size in bytes, and time of change in ns (None where the store has none)."""

    address: str
    bytes: int
    changed: int | None


class Store:
    """The files below an address.

    Attributes:
        address: as it was given.
        local: the folder on this machine; None for others.
    """

    def __init__(self, address: str, patience: float = PATIENCE) -> None:
        """Find the file system.

        Args:
            address: of the folder.
            patience: seconds that a store which is not local may be away.

        Raises:
            UserError: there is no such file system.
        """
        self.address, self.patience = address.rstrip("/") or address, patience
        self.local = None if "://" in address else Path(os.path.abspath(address))
        self._fs, root = find_file_system(self.address)
        self._root = root.rstrip("/")
        self._moves = not any(kind in self._fs.type_name for kind in _WHOLE_AT_ONCE)

    def __reduce__(self) -> tuple:
        return Store, (self.address, self.patience)

    def child(self, name: str) -> str:
        """Address of a file by its name below this one."""
        return f"{self.address}/{name}"

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read, or the store does not answer (StoreError).
        """

        def read() -> bytes:
            with self._fs.open_input_stream(self._path(name)) as stream:
                return stream.read()

        return self._patiently(read, name)

    def load(self, name: str, action: Callable[[NativeFile], T]) -> T:
        """What a function makes of an open file, of which it reads parts.

        Raises:
            OSError: as `read`.
        """

        def load() -> T:
            with self._fs.open_input_file(self._path(name)) as file:
                return action(file)

        return self._patiently(load, name)

    def write(self, name: str, content: bytes) -> None:
        """Write a file that appears whole, in place of an earlier one.

        Raises:
            OSError: it cannot be written, or the store does not answer (StoreError).
        """
        if self.local is not None:
            path = self.local / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content, durable=True)
            return
        path = self._path(name)

        def write() -> None:
            target = path
            if self._moves:
                target = f"{os.path.dirname(path)}/{TEMPORARY.replace('*', secrets.token_hex(8))}"
                self._fs.create_dir(os.path.dirname(path), recursive=True)
            with self._fs.open_output_stream(target) as stream:
                stream.write(content)  # at once, so that no part of it can be taken for the whole
            if self._moves:
                self._fs.move(target, path)

        self._patiently(write, name)

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""

        def delete() -> None:
            if self._is_file(name):
                try:
                    self._fs.delete_file(self._path(name))
                except OSError:
                    if self._is_file(name):  # else the folder that pyarrow then makes was refused
                        raise

        self._patiently(delete, name)

    def exists(self, name: str) -> bool:
        """Whether there is a file."""
        return self._patiently(lambda: self._is_file(name), name)

    def _is_file(self, name: str) -> bool:
        return self._fs.get_file_info(self._path(name)).type == arrow.FileType.File

    def list(self, name: str = "", recursive: bool = False) -> list[StoredFile]:
        """The files in a folder, by their names; none where there is no such folder."""
        selector = arrow.FileSelector(self._path(name), allow_not_found=True, recursive=recursive)
        found = self._patiently(lambda: self._fs.get_file_info(selector), name)
        return sorted(self._describe(found), key=lambda file: file.address)

    def _describe(self, found: list[arrow.FileInfo]) -> Iterator[StoredFile]:
        for info in found:
            if info.type == arrow.FileType.File:
                below = info.path[len(self._root) :].lstrip("/")
                changed = None if info.mtime_ns is None or info.mtime_ns < 0 else info.mtime_ns
                yield StoredFile(self.child(below), info.size or 0, changed)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _patiently(self, action: Callable[[], T], name: str) -> T:
        """Do it again while the store does not answer."""
        deadline, pause = time.monotonic() + self.patience, 0.25
        while True:
            try:
                return action()
            except FileNotFoundError:
                raise
            except OSError as error:
                if self.local is not None or error.errno in _FINAL:
                    raise
                if any(word in str(error) for word in _REFUSED):
                    raise PermissionError(errno.EACCES, first_line(error), self.child(name)) from error
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"{self.child(name)}: the store did not answer for {self.patience:.0f} s: {first_line(error)}"
                    ) from error
            time.sleep(pause * (0.5 + random.random()))  # so that a thousand actors do not come back at once
            pause = min(2 * pause, 5.0)


def read_address(address: str, patience: float = PATIENCE) -> bytes:
    """Content of a file by its address; see `Store.read`."""
    folder, _, name = address.rpartition("/")
    return Store(folder, patience).read(name)


def find_file_system(address: str) -> tuple[arrow.FileSystem, str]:
    """The file system of an address, and the path in it.

    Raises:
        UserError: there is none, or it needs a package.
    """
    if "://" not in address:
        return arrow.LocalFileSystem(), os.path.abspath(address)
    scheme, _, place = address.partition("://")
    try:
        found, path = arrow.FileSystem.from_uri(f"{scheme}://{quote(place)}")
        return (_patient_s3(found) if scheme == "s3" else found), path
    except (ArrowInvalid, ArrowNotImplementedError):
        pass  # fsspec may know it
    except OSError as error:
        raise UserError(f"{address}: {first_line(error)}") from error
    import fsspec

    try:
        found, path = fsspec.core.url_to_fs(address)
    except (ValueError, ImportError, OSError) as error:
        raise UserError(f"{address}: neither pyarrow nor fsspec has such a file system: {error}") from error
    return arrow.PyFileSystem(arrow.FSSpecHandler(found)), path


def _patient_s3(found: arrow.FileSystem) -> arrow.FileSystem:
    """The same S3, which may take its time, with one request for an object of a few MB."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    scheme, separator, host = endpoint.rpartition("://")
    options = {"endpoint_override": host, "scheme": scheme or "https"} if separator or host else {}
    return arrow.S3FileSystem(
        region=found.region, connect_timeout=10.0, request_timeout=30.0, allow_delayed_open=True, **options
    )
