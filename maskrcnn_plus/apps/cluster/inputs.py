"""The files of a job: local ones as `predict_files` finds them, and those of object stores by listing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from maskrcnn_plus.apps.cluster.stores import Store
from maskrcnn_plus.apps.predict_files.inputs import FOLDER_SUFFIXES, expand_lists, find_files, name_files, natural_key
from maskrcnn_plus.errors import UserError


@dataclass(frozen=True)
class ListedFile:
    """A file to predict.

    Attributes:
        path: as it was found, or its address.
        name: of its results.
        bytes, changed: size, and time of change in ns; None where they are not known.
    """

    path: str
    name: str
    bytes: int | None
    changed: int | None


def list_files(
    entries: Sequence[str], recursive: bool, patience: float, leave_out: Sequence[str] = ()
) -> list[ListedFile]:
    """Files of all entries without repetition, in natural order within each.

    Args:
        entries: of `list_inputs`, and addresses of files and folders of a store ("s3://bucket/images/"). Lines of a
            list are taken as files.
        recursive: take the files in sub-folders of folders too.
        patience: see `Store`.
        leave_out: folders, or their addresses, whose files are not taken from other folders: results of the job.

    Raises:
        UserError, ValueError: an entry that gives no file.
        OSError: a store does not answer.
    """
    found: dict[str, tuple[str, str]] = {}  # absolute path or address -> path, folder that its name begins below
    facts: dict[str, tuple[int | None, int | None]] = {}
    for entry, listed in expand_lists(entries):
        outside = [folder for folder in leave_out if not _is_below(entry, folder)]
        if "://" not in entry:
            for path, root in find_files(entry, recursive, outside, keep_missing=listed):
                found.setdefault(path if "://" in path else os.path.abspath(path), (path, root))
        elif listed:
            found.setdefault(entry, (entry, ""))
        else:
            for path, root, size, changed in _list_store(entry, recursive, patience, outside):
                found.setdefault(path, (path, root))
                facts[path] = size, changed
    named = name_files(found.values())
    return [ListedFile(file.path, file.name, *facts.get(file.path) or _local_facts(file.path)) for file in named]


def _is_below(entry: str, folder: str) -> bool:
    """Whether an input is in a folder of results, or that folder itself; then it was meant."""
    places = [each if "://" in each else os.path.abspath(each) for each in (entry, folder)]
    return f"{places[0].rstrip('/')}/".startswith(f"{places[1].rstrip('/')}/")


def _list_store(
    entry: str, recursive: bool, patience: float, leave_out: Sequence[str]
) -> Iterator[tuple[str, str, int, int | None]]:
    """Path, root, size and time of change of the files of an address, but for hidden ones, as in local folders."""
    store = Store(entry, patience)
    skipped = tuple(f"{folder}/" for folder in leave_out)
    files = [
        file
        for file in store.list(recursive=recursive)
        if "/." not in file.address[len(store.address) :] and not file.address.startswith(skipped)
    ]
    if not files:
        folder, _, name = entry.rstrip("/").rpartition("/")
        alone = [file for file in Store(folder, patience).list() if file.address == f"{folder}/{name}"]
        if not alone:
            raise UserError(f"input {entry}: no such file, and no file in such a folder")
        yield alone[0].address, "", alone[0].bytes, alone[0].changed
        return
    images = [file for file in files if file.address.lower().endswith(FOLDER_SUFFIXES)]
    if not images:
        raise UserError(f"input {entry}: none of its {len(files)} files has the name of an image or video")
    root = store.address.split("://", 1)[1]
    for file in sorted(images, key=lambda each: natural_key(each.address)):
        yield file.address, root, file.bytes, file.changed


def _local_facts(path: str) -> tuple[int | None, int | None]:
    try:
        status = os.stat(path)
    except OSError:  # named when it is predicted; of an address in a list nothing is known
        return None, None
    return status.st_size, status.st_mtime_ns
