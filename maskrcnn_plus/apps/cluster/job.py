"""A job on a cluster as plain values, which go to every machine, and its plan: which files are in which shard."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from maskrcnn_plus.apps.cluster.attempts import ATTEMPT
from maskrcnn_plus.apps.cluster.inputs import ListedFile
from maskrcnn_plus.apps.cluster.stores import PATIENCE, Store
from maskrcnn_plus.apps.cluster.tables import to_parquet
from maskrcnn_plus.apps.predict_files.fingerprint import changed_settings
from maskrcnn_plus.apps.predict_files.prediction_loop import FileOptions
from maskrcnn_plus.apps.predictor_source import PredictorSource
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.plain_data import from_plain

TABLES = ("objects", "failures", "images")
"""Folders of the output, in the order in which a shard's files are written: the last one makes it whole."""

RESULTS = (*TABLES, "spread", "tiles", "formats")
"""All folders of the output."""

_INPUTS = pa.schema([("path", pa.string()), ("name", pa.string())])


@dataclass(frozen=True)
class Job:
    """A prediction of many files.

    Attributes:
        source: of the predictor.
        options: of each image; `formats` are written beside the tables.
        output: address of the folder of the results.
        folder: that relative paths begin in.
        shard_size: files of a shard.
        spread: tiles from which on an image is predicted by several actors, each so many at a time; 0 for never.
        threads: of an actor on the CPU.
        patience: seconds that an object store may be away.
    """

    source: PredictorSource
    options: FileOptions
    output: str
    folder: str
    shard_size: int = 500
    spread: int = 256
    threads: int = 1
    patience: float = PATIENCE

    def store(self) -> Store:
        """The folder of the results."""
        return Store(self.output, self.patience)


@dataclass(frozen=True)
class Manifest:
    """The plan of a job, `manifest.json`; its files are in `inputs.parquet`, a row group a shard.

    Attributes:
        inputs: fingerprint of the files: addresses, sizes, times of change.
        settings: what results depend on besides, as text by name.
        files: their number.
        shard_size: files of a shard.
        class_names: a name a class.
        category_ids: an id a class; None where the weights know none.
    """

    inputs: str
    settings: dict[str, str]
    files: int
    shard_size: int
    class_names: tuple[str, ...]
    category_ids: tuple[int | float | str, ...] | None

    def __post_init__(self) -> None:
        """Refuse numbers that no plan has."""
        if self.files < 0 or self.shard_size < 1:
            raise ValueError(f"{self.files} files in shards of {self.shard_size} are no plan")

    @property
    def shards(self) -> int:
        """Their number."""
        return -(-self.files // self.shard_size)

    def size_of(self, shard: int) -> int:
        """Files of a shard."""
        return min(self.shard_size, self.files - shard * self.shard_size)


def shard_name(kind: str, shard: int) -> str:
    """File of a table of a shard."""
    return f"{kind}/shard-{shard:06d}.parquet"


def read_manifest(store: Store) -> Manifest:
    """The plan of a folder of results.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is damaged.
    """
    try:
        return from_plain(json.loads(store.read("manifest.json")), Manifest)
    except ValueError as error:
        raise UserError(f"{store.child('manifest.json')} is damaged: {error}") from error


def plan_job(
    store: Store,
    files: Sequence[ListedFile],
    settings: dict[str, str],
    shard_size: int,
    classes: tuple[Sequence[str], Sequence[int | float | str] | None],
    overwrite: bool,
) -> Manifest:
    """Plan a job, or find that an earlier run of the same command has planned it.

    Args:
        store: of the results.
        files: in their order.
        settings: see `Manifest`.
        shard_size: files of a shard.
        classes: names and category ids.
        overwrite: forget what is there.

    Raises:
        UserError: the folder has results of other inputs or settings; the message says which.
    """
    names, ids = classes
    new = Manifest(
        fingerprint(files), settings, len(files), shard_size, tuple(names), None if ids is None else tuple(ids)
    )
    if overwrite:
        store.delete("manifest.json")  # first, so that nothing is taken for a result of the new plan
        files_there = [
            file for kind in (*reversed(TABLES), "spread", "tiles") for file in store.list(kind, recursive=True)
        ]
        files_there += [file for file in store.list() if file.address.rpartition("/")[2].startswith(ATTEMPT)]
        for file in files_there:
            store.delete(file.address.removeprefix(store.address + "/"))
    try:
        earlier = read_manifest(store)
    except FileNotFoundError:
        if store.list("images"):
            raise UserError(
                f"{store.address} has tables but no plan: choose another output, or replace them with --overwrite"
            ) from None
    else:
        _check_same(store, earlier, new)
        return earlier
    rows = {"path": [file.path for file in files], "name": [file.name for file in files]}
    try:
        table = pa.table(rows, schema=_INPUTS)
    except UnicodeEncodeError as error:
        raise UserError(f"the file name {error.object!r} is no UTF-8 text, which tables hold: rename it") from error
    store.write("inputs.parquet", to_parquet(table, row_group_size=shard_size))
    store.write("manifest.json", json.dumps(dataclasses.asdict(new), indent=1).encode())
    return new


def fingerprint(files: Sequence[ListedFile]) -> str:
    """Of addresses, sizes and times of change."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{os.fsencode(file.path)!r} {file.name} {file.bytes} {file.changed}\n".encode(errors="replace"))
    return digest.hexdigest()[:16]


def _check_same(store: Store, earlier: Manifest, new: Manifest) -> None:
    remedy = "Choose another output, or make all results again with --overwrite"
    before, now = ({**each.settings, "shard_size": str(each.shard_size)} for each in (earlier, new))
    if changed := changed_settings(before, now):
        raise UserError(f"{store.address} has results of other settings: {', '.join(changed)}. {remedy}")
    if earlier.inputs != new.inputs:
        what = f"{earlier.files} files before, {new.files} now" if earlier.files != new.files else "some files changed"
        raise UserError(f"{store.address} has results of other inputs: {what}. {remedy}")


def read_shard(store: Store, shard: int) -> list[tuple[str, str]]:
    """Path and name of each file of a shard."""
    table = store.load("inputs.parquet", lambda file: pq.ParquetFile(file).read_row_group(shard))
    return list(zip(table.column("path").to_pylist(), table.column("name").to_pylist(), strict=True))
