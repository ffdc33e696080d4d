"""A run that is split into shards, each a process anywhere that sees the output folder, and what joins them.

Each shard leaves `.records/shards/K-of-N.json`: which images have their results, which failed, and a fingerprint of the
inputs of all shards. Joining wants every shard once, whole, and of the same inputs and settings.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from maskrcnn_plus.apps.predict_files.file_predictor import RunSummary, result_kinds
from maskrcnn_plus.apps.predict_files.inputs import InputFile
from maskrcnn_plus.apps.predict_files.merging import merged_files, write_merged
from maskrcnn_plus.apps.predict_files.prediction_loop import FileOptions
from maskrcnn_plus.apps.predict_files.records import Records, Shard
from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.errors import UserError, listed
from maskrcnn_plus.plain_data import from_plain
from maskrcnn_plus.results import FORMATS

T = TypeVar("T")


@dataclass
class ShardRecord:
    """What a shard leaves.

    Attributes:
        shard: "K/N".
        inputs: fingerprint of the files of all shards.
        settings: `Records.digest`.
        formats, class_names, report: see `write_merged`.
        kinds: the results of each image.
        failures: see `RunSummary`.
        num_objects: of all images.
        num_left: files that are not done, since the run was interrupted.
        done: see `RunSummary`.
    """

    shard: str
    inputs: str
    settings: str
    formats: tuple[str, ...]
    kinds: tuple[str, ...]
    class_names: tuple[str, ...]
    report: dict[str, str] | None
    failures: tuple[tuple[str, str], ...] = ()
    num_objects: int = 0
    num_left: int = 0
    done: tuple[tuple[int, int, str], ...] = ()
    path: str = field(default="", repr=False)

    @classmethod
    def begin(
        cls,
        shard: Shard,
        files: Sequence[InputFile],
        records: Records,
        options: FileOptions,
        class_names: Sequence[str],
        report: Mapping[str, str] | None,
    ) -> ShardRecord:
        """Start a shard; what it left before is void.

        Args:
            shard: the part.
            files: of all shards.
            records: of the output folder.
            options: of the run.
            class_names, report: see `write_merged`.
        """
        path = records.shards / f"{shard.stem}.json"
        path.unlink(missing_ok=True)
        listed = json.dumps([(file.path, file.name) for file in files]).encode()
        digest = hashlib.sha256(listed).hexdigest()[:16]
        about = None if report is None else dict(report)
        common = (str(shard), digest, records.digest, options.formats, result_kinds(options), tuple(class_names), about)
        return cls(*common, path=str(path))

    def end(self, summary: RunSummary) -> None:
        """Write it."""
        self.failures, self.num_objects = tuple(summary.failures), summary.num_objects
        self.num_left, self.done = summary.num_left, tuple(summary.done)
        content = {key: value for key, value in dataclasses.asdict(self).items() if key != "path"}
        write_atomically(self.path, json.dumps(content).encode(), durable=True)


def merge_shards(output: str | Path) -> RunSummary:
    """Write what brings the images of all shards together, as a run without shards does.

    Args:
        output: the folder that all shards wrote to.

    Returns:
        The sum of the shards; their images count as `num_before`.

    Raises:
        UserError: a shard is missing, not finished or there twice, or shards are of different inputs or settings; or
            results are gone. The message names the shards.
        OSError: a file cannot be written, or a shard is running (BlockingIOError).
    """
    folder = Path(output)
    place = folder / ".records"
    if not (place / "shards").is_dir():
        raise UserError(f"{folder} has no shards: run tools/predict.py --shard 1/N ... --shard N/N first")
    settings = _read(place / "settings.json", dict[str, Any])
    shards = _check([_read(path, ShardRecord) for path in sorted((place / "shards").glob("*.json"))], folder)
    first = shards[0]
    total = RunSummary()
    for shard in shards:
        total.num_before += len(shard.done)
        total.num_objects += shard.num_objects
        total.failures += shard.failures
        total.done += shard.done
    total.done.sort()
    files = merged_files(first.formats, first.report is not None)
    with Records(folder, settings, [FORMATS[kind] for kind in first.formats], files) as records:
        if first.settings != records.digest:
            raise UserError(f"{folder}: the shards were run with other settings than {place / 'settings.json'} says")
        for shard in shards:
            for _, _, name in shard.done:
                if not records.is_done(name, shard.kinds):
                    raise UserError(f"{folder}: results of {name} are not there: run --shard {shard.shard} again")
        write_merged(folder, records, total, first.formats, first.class_names, first.report)
    return total


def _read(path: Path, kind: type[T]) -> T:
    try:
        return from_plain(json.loads(path.read_bytes()), kind)
    except ValueError as error:
        again = "this shard" if kind is ShardRecord else "the shards"
        raise UserError(f"{path} is damaged ({error}): run {again} again") from error


def _check(shards: Sequence[ShardRecord], folder: Path) -> list[ShardRecord]:
    """The shards in their order, if they are all of one run.

    Raises:
        UserError: they are not.
    """
    known = {Shard.parse(each.shard): each for each in shards}
    if len(known) < len(shards):
        twice = sorted({each.shard for each in shards if known[Shard.parse(each.shard)] is not each})
        raise UserError(f"{folder}: there are several records of the shards {', '.join(twice)} in .records/shards")
    counts = sorted({shard.count for shard in known})
    if not counts:
        raise UserError(f"{folder}: no shard is finished")
    if len(counts) > 1:
        several = ", ".join(str(shard) for shard in sorted(known, key=lambda each: (each.count, each.index)))
        raise UserError(
            f"{folder} has shards of different divisions, so that images are there twice: {several}. Remove those of "
            "one division from .records/shards"
        )
    missing = [str(shard) for k in range(1, counts[0] + 1) if (shard := Shard(k, counts[0])) not in known]
    missing += [f"{each.shard} (interrupted, {each.num_left} files left)" for each in shards if each.num_left]
    if missing:
        raise UserError(f"{folder}: these shards are not finished: {listed(missing, 20)}. Run them (again)")
    ordered = [known[shard] for shard in sorted(known, key=lambda each: each.index)]
    for key, what in (("inputs", "inputs"), ("settings", "settings"), ("kinds", "formats"), ("class_names", "classes")):
        others = [each.shard for each in ordered if getattr(each, key) != getattr(ordered[0], key)]
        if others:
            raise UserError(
                f"{folder}: the shards {', '.join(others[:20])} were run with other {what} than {ordered[0].shard}: "
                "run them again with the same command"
            )
    return ordered
