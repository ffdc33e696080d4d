"""What is known of a data set is remembered: found once, by the main process, until a file changes.

Findings lie in the user's cache folder as JSON, under a fingerprint of all that they depend on. A cache that cannot be
read or written costs the time that it would have saved, and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from detectron2.utils import comm

from maskrcnn_plus.atomic import write_atomically

logger = logging.getLogger(__name__)

VERSION = 2
"""Of the data check and the reading of label images: a change of what they find makes it another number."""

_KEPT = 64  # files in the cache folder, the newest
_in_memory: dict[str, bytes] = {}  # JSON: one object, whose memory data loaders share
_loaded: dict[tuple, tuple[tuple[int, int], bytes]] = {}

T = TypeVar("T")


def cache_folder() -> Path | None:
    """Folder of what is get_cached: `MASKRCNN_PLUS_CACHE`, else `maskrcnn_plus` in the user's cache folder.

    None where `MASKRCNN_PLUS_CACHE` is set and empty: then nothing outlives the process.
    """
    chosen = os.environ.get("MASKRCNN_PLUS_CACHE")
    if chosen is not None:
        return Path(chosen).expanduser() if chosen else None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "maskrcnn_plus"


def fingerprint(values: Iterable[Any], files: Iterable[str]) -> str | None:
    """Digest of values and of the states of files.

    Args:
        values: what pickle can take; equal values of equal types give equal digests.
        files: paths. Of each its size and time of change count, and whether it is there.

    Returns:
        Hexadecimal digits, or None where a value or a file cannot be told from a changed one: a value that pickle does
        not take, an address of another machine.
    """
    digest = hashlib.blake2b(str(VERSION).encode(), digest_size=20)
    try:
        for value in values:
            buffer = io.BytesIO()
            pickler = pickle.Pickler(buffer, protocol=5)
            pickler.fast = True  # no references between equal objects, which depend on where they came from
            pickler.dump(value)
            digest.update(buffer.getbuffer())
        for file in files:
            state = _file_state(file)
            if state is None:
                return None
            digest.update(repr((str(file), state)).encode())
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, RecursionError):
        return None
    return digest.hexdigest()


def get_cached(key: str | None, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Findings of `find`, from memory or the cache folder where they are known.

    Args:
        key: their `fingerprint`; None to find them anew.
        find: returns a dict that JSON can hold, with text as keys; called where nothing is remembered.
    """
    if key is None:
        return find()
    findings = json.loads(_in_memory[key]) if key in _in_memory else _read(key)
    if findings is None:
        findings = find()
        _write(key, findings)
    if key not in _in_memory:
        _in_memory[key] = json.dumps(findings).encode()
    return findings


def on_main_process(compute: Callable[[], T]) -> T:
    """The result of `compute`, which the main process alone calls, on all processes. All of them must come here.

    Raises:
        Exception: what `compute` raised, on all processes, so that none waits for another.
    """
    if comm.get_world_size() == 1:
        return compute()
    outcome: tuple[bool, Any] | None = None
    if comm.is_main_process():
        try:
            outcome = True, compute()
        except Exception as error:
            outcome = False, error
    done, value = comm.all_gather(outcome)[0]
    if done:
        return value
    raise value


def loaded_once(file: str, arguments: Sequence[Any], load: Callable[[], T]) -> T:
    """What `load` makes of a file, read again only where the file has changed since this process read it.

    Args:
        file: path; an address of another machine is read each time.
        arguments: what else the result depends on, hashable.
        load: returns what pickle can take. Every call of this function gives an object of its own.
    """
    key, state = (file, *arguments), _file_state(file)
    if state is None or state == "missing":
        return load()
    if _loaded.get(key, (None,))[0] == state:
        return unpack(_loaded[key][1])
    value = load()
    _loaded[key] = state, pack(value)
    return value


def pack(value: Any) -> bytes:
    """Dataset dicts, or what holds them, as one object, whose memory is shared with the processes of data loaders."""
    return pickle.dumps(value, protocol=5)


def unpack(packed: bytes) -> Any:
    """A fresh copy of what `pack` took in this process."""
    return pickle.loads(packed)


def _file_state(file: str | os.PathLike) -> tuple[int, int] | str | None:
    """Size and time of change of a file, "missing", or None where it is not on this machine."""
    file = os.fspath(file)
    if "://" in file:
        return None
    try:
        status = os.stat(file)
    except OSError:
        return "missing"
    return status.st_size, status.st_mtime_ns


def _path(key: str) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "data" / f"{key}.json"


def _read(key: str) -> dict[str, Any] | None:
    """What is remembered under a key, or None."""
    path = _path(key)
    try:
        content = None if path is None else json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):  # none there, or damaged
        return None
    if not isinstance(content, dict) or content.get("key") != key or not isinstance(content.get("findings"), dict):
        return None
    findings = content["findings"]
    return findings if content.get("digest") == _digest(findings) else None


def _write(key: str, findings: dict[str, Any]) -> None:
    """Remember, and forget the oldest."""
    path = _path(key)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"key": key, "digest": _digest(findings), "findings": findings}
        write_atomically(path, json.dumps(content).encode())
        by_age = sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        for old in by_age[:-_KEPT]:
            old.unlink(missing_ok=True)
    except OSError as error:
        logger.info(f"{path}: what is known of the data cannot be kept for the next start ({error}).")


def _digest(findings: dict[str, Any]) -> str:
    """Checksum of findings as JSON."""
    return hashlib.blake2b(json.dumps(findings, sort_keys=True).encode(), digest_size=8).hexdigest()
