"""What is done in an output folder, so that a run that was stopped or killed goes on where it was.

Each image whose results are all there has a record: its file's size and time of change, the settings, and the size of
each result. The record is written last and every file atomically, so that a result without a record is made again and
one with a record is whole. Of an image that is predicted by tiles, those that were predicted are kept until then.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskrcnn_plus.apps.predict_files.fingerprint import FORMAT_SETTINGS, changed_settings
from maskrcnn_plus.apps.predict_files.sources import SourceImage
from maskrcnn_plus.atomic import TEMPORARY, write_atomically
from maskrcnn_plus.inference.kept_tiles import KeptTiles
from maskrcnn_plus.locking import lock_folder


@dataclass(frozen=True)
class Shard:
    """A part of a run's files: those at the positions `index` - 1, `index` - 1 + `count`, and so on.

    Attributes:
        index: from 1 to `count`.
        count: of the shards of the run.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Of "3/64".

        Raises:
            ValueError: it is another text, or there is no such shard.
        """
        numbers = re.fullmatch(r"(\d+)(?:/|-of-)(\d+)", text)
        shard = cls(*map(int, numbers.groups())) if numbers else None
        if shard is None or not 1 <= shard.index <= shard.count:
            raise ValueError(f"shard is {text!r}, it must be K/N with K from 1 to N, such as 3/64")
        return shard

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def stem(self) -> str:
        """Of the names of its files."""
        return f"{self.index}-of-{self.count}"


class Records:
    """The records of one output folder, in its sub-folder `.records`.

    As a context manager it keeps other runs out of the folder.

    Attributes:
        output: the folder.
        digest: of the settings.
        shards: folder of what shards leave.
    """

    def __init__(
        self,
        output: str | Path,
        settings: Mapping[str, str],
        sub_folders: Iterable[str],
        files: Iterable[str],
        overwrite: bool = False,
        shard: Shard | None = None,
    ) -> None:
        """Open or make the folder.

        Args:
            output: the folder, made if it is not there.
            settings: what results depend on besides their image, as text by name. Results of other settings are
                refused, see `changed_settings`.
            sub_folders, files: names in the folder that a run writes to. They must not be there without records, as
                they may hold something else, such as the labels that people drew.
            overwrite: replace what is there, whatever it is, and make everything again.
            shard: the part of the inputs that this run predicts; those of other shards may have the folder too.

        Raises:
            ValueError: there are results of other settings, or other files.
            OSError: the folder cannot be written to, or another run has it (BlockingIOError).
        """
        self.output = Path(output)
        self._folder = self.output / ".records"
        self.shards, self._images = self._folder / "shards", self._folder / "images"
        self._settings_file = self._folder / "settings.json"
        self._settings = {name: str(value) for name, value in settings.items()}
        self._of_formats = {name: self._settings[name] for name in FORMAT_SETTINGS if name in self._settings}
        common = {name: value for name, value in self._settings.items() if name not in FORMAT_SETTINGS}
        self.digest = hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()[:16]
        self._sub_folders, self._files = tuple(sub_folders), tuple(files)
        self._overwrite, self._shard = overwrite, shard

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: the folder is locked by the run that they belong to."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __enter__(self) -> Records:
        """Take the folder, check what is in it and note the settings."""
        if not self._overwrite:
            self._check()
        remedy = "wait or choose another"
        with ExitStack() as locks:
            locks.enter_context(lock_folder(self.output, self._folder / "lock", remedy, self._shard is not None))
            if self._shard is not None:
                what = f"{self.output}, shard {self._shard}"
                locks.enter_context(lock_folder(what, self.shards / f"{self._shard.stem}.lock", "wait for its end"))
            self._lock = locks.pop_all()
        if self._shard is None:  # other shards may be writing
            self._remove_leftovers()
        earlier = {} if self._overwrite else _read_json(self._settings_file) or {}
        kept = {name: value for name, value in earlier.items() if name in FORMAT_SETTINGS}
        write_atomically(self._settings_file, json.dumps({**kept, **self._settings}, indent=1).encode())
        return self

    def _remove_leftovers(self) -> None:
        """Remove what runs that were killed while they wrote have left; only where no other run is writing."""
        folders = (self._folder, *(self.output / name for name in self._sub_folders))
        leftovers = [path for folder in folders for path in folder.rglob(TEMPORARY)]
        for leftover in (*leftovers, *self.output.glob(TEMPORARY)):
            leftover.unlink(missing_ok=True)

    def __exit__(self, *exception: object) -> None:
        """Let others in."""
        self._lock.close()

    def _check(self) -> None:
        """Refuse to add to results of other settings, or to replace what no run wrote."""
        earlier = _read_json(self._settings_file)
        if earlier is None:
            present = [name for name in self._sub_folders if next((self.output / name).glob("*"), None)]
            present += [name for name in self._files if (self.output / name).exists()]
            if present:
                raise ValueError(
                    f"{self.output / present[0]} is there already and not of an earlier run: choose another output "
                    "folder, or replace what is there with --overwrite"
                )
        elif (changed := changed_settings(earlier, self._settings)) and any(self._images.rglob("*.json")):
            raise ValueError(
                f"{self.output} has results of other settings: {', '.join(changed)}. Choose another output folder, or "
                "make all results again with --overwrite"
            )

    def has(self, image: SourceImage, kinds: Iterable[str]) -> bool:
        """Whether the results of all `kinds` are there for the image as it is."""
        record = None if self._overwrite else _read_json(self._path(image.name))
        if record is None or record.get("settings") != self.digest or record.get("input") != file_state(image.path):
            return False
        return self._is_whole(record, kinds)

    def is_done(self, name: str, kinds: Iterable[str]) -> bool:
        """Whether the results of all `kinds` are there for the image of that name, whatever became of its file."""
        record = _read_json(self._path(name))
        return record is not None and record.get("settings") == self.digest and self._is_whole(record, kinds)

    def _is_whole(self, record: dict[str, Any], kinds: Iterable[str]) -> bool:
        results, of_formats = record.get("results"), record.get("of_formats") or {}
        if any(of_formats.get(name, value) != value for name, value in self._of_formats.items()):
            return False
        return isinstance(results, dict) and all(self._is_there(results.get(kind)) for kind in kinds)

    def _is_there(self, result: Any) -> bool:
        """Whether a result of a record is a value, or a file of the size that it had."""
        if not isinstance(result, dict):
            return False
        return "value" in result or _size(self.output / str(result.get("file"))) == result.get("bytes", -1)

    def file(self, name: str, kind: str) -> Path:
        """File of a result of the image of that name, which has a record."""
        return self.output / self._result(name, kind)["file"]

    def value(self, name: str, kind: str) -> Any:
        """Result without a file of its own of the image of that name, which has a record."""
        return self._result(name, kind)["value"]

    def _result(self, name: str, kind: str) -> dict[str, Any]:
        """What the record of an image says of a result.

        Raises:
            FileNotFoundError: the record went away since it was written.
        """
        record = _read_json(self._path(name))
        if record is None:
            raise FileNotFoundError(
                f"{self.output}: the record of {name} in .records was removed or damaged while this run was going on. "
                "Make all results again with --overwrite."
            )
        return record["results"][kind]

    def tiles(self, image: SourceImage) -> KeptTiles:
        """The tiles of an image whose results are not there yet, for as long as its file and the settings are the same.

        Its file is removed by `write`.
        """
        path = self._tiles_path(image.name)
        if self._overwrite:
            path.unlink(missing_ok=True)
        return KeptTiles(path, json.dumps([self.digest, file_state(image.path), image.part]))

    def _tiles_path(self, name: str) -> Path:
        return self._folder / "tiles" / f"{name}.jsonl"

    def write(self, image: SourceImage, state: dict[str, Any], files: Mapping[str, Path], **values: Any) -> None:
        """Record an image whose results are written.

        Args:
            image: the image.
            state: `file_state` of its file from before it was read.
            files: file of each kind of result.
            **values: results that have no file of their own, for JSON.
        """
        results = {
            kind: {"file": path.relative_to(self.output).as_posix(), "bytes": _size(path)}
            for kind, path in files.items()
        }
        results.update((kind, {"value": value}) for kind, value in values.items())
        record = {"settings": self.digest, "of_formats": self._of_formats, "input": state, "results": results}
        path = self._path(image.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(record).encode(), durable=True)
        self._tiles_path(image.name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._images / f"{name}.json"


def file_state(path: str) -> dict[str, Any]:
    """What tells that a file is still the same: its full path, size and time of change."""
    if "://" in path:
        return {"path": path}
    status = os.stat(path)
    return {"path": os.path.abspath(path), "bytes": status.st_size, "changed": status.st_mtime_ns}


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _read_json(path: Path) -> dict[str, Any] | None:
    """The dict of a file; None where there is none or it is damaged, so that the image is predicted again."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None
