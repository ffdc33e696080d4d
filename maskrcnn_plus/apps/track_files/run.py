"""Prediction and tracking of films: a first pass predicts every frame, a second one follows the objects.

The first pass is `predict_files`, which goes on where it was stopped. The second replays what it stored from the first
frame on, so that a run that was stopped has the same identities as one that was not.

Shape shorthand: H x W pixels of a frame.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from maskrcnn_plus.apps.predict_files.inputs import list_inputs
from maskrcnn_plus.apps.predict_files.label_stacks import get_calibration, stack_axes
from maskrcnn_plus.apps.predict_files.run import RunSummary, predict_files
from maskrcnn_plus.apps.track_files.films import Film, StoredFrames, list_films
from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.data.channels import ChannelRule, get_rule
from maskrcnn_plus.data.frames import read_frame_rate
from maskrcnn_plus.data.limits import pixel_limit
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.inference.bytetrack import ByteTracker
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.inference.tracking import MaskTracker
from maskrcnn_plus.locking import lock_folder
from maskrcnn_plus.masks.label_map import label_type, rles_to_label_map
from maskrcnn_plus.results import FORMATS
from maskrcnn_plus.results.label_tiff import write_planes
from maskrcnn_plus.results.overlay import reduced_picture
from maskrcnn_plus.results.track_film import TrackPainter, write_film
from maskrcnn_plus.results.tracks import TrackCounts, TrackedFrame, merge_rows, write_rows, write_track_table

TRACKERS = ("masks", "bytetrack")
DEFAULT_FORMATS = ("overlay",)
FILM_FORMATS = {"overlay": ".mp4", "labels": ".tif", "label-tiff": ".tif"}
"""Formats that are one file a film, with the identities of its objects, and their suffix."""

_FOLDER = "tracks"
_TABLE, _COUNTS = "tracks.csv", "track_counts.csv"
_UNTIMED_RATE = 10.0  # frames a second of the film that is drawn of images without times, or minutes apart


@dataclass(frozen=True)
class TrackOptions:
    """How objects are followed, and where they are counted.

    Attributes:
        tracker: one of `TRACKERS`.
        memory: frames after which an object that is not seen any more is a new one.
        divisions: objects are cells that divide, see `MaskTracker`.
        lines, zones: see `TrackCounts`.
    """

    tracker: str = "masks"
    memory: int = 30
    divisions: bool = False
    lines: tuple[tuple[float, float, float, float], ...] = ()
    zones: tuple[tuple[tuple[float, float], ...], ...] = ()

    def build(self) -> MaskTracker | ByteTracker:
        """A tracker without tracks.

        Raises:
            UserError: there is none of that name, or its package is missing; `memory` is negative.
        """
        if self.tracker not in TRACKERS:
            raise UserError(f"there is no tracker {self.tracker!r}; choose of {', '.join(TRACKERS)}")
        if self.tracker == "masks":
            return MaskTracker(self.memory, self.divisions)
        if self.divisions:
            raise UserError("ByteTrack knows no divisions: use the tracker masks")
        return ByteTracker(self.memory)


def track_files(
    predictor: Predictor,
    inputs: Sequence[str] | str,
    output: str | Path,
    track: TrackOptions | None = None,
    *,
    formats: Sequence[str] = DEFAULT_FORMATS,
    recursive: bool = False,
    overwrite: bool = False,
    max_pixels: int | None = None,
    **options: Any,
) -> RunSummary:
    """Predict videos, animations, stacks and folders of images as films, and follow their objects.

    Below the output folder, for each film, see `list_films`:
        tracks/NAME.csv: a row an object and frame, see `write_track_table`; of all films: tracks.csv
        tracks/NAME_counts.csv: how many objects there were, see `TrackCounts`; of all films: track_counts.csv
        overlays/NAME.mp4: the film with the tracks drawn in, for the format overlay
        labels/NAME.tif, label-tiff/NAME.tif: [T, H, W], the value of a pixel is the identity of its object
    Other formats are written frame by frame, and coco always is: it is what the objects are followed by.

    An object that is seen in one frame only, of a film of several, gets no identity. A run that is stopped goes on, to
    the same files; with other `track` options, frames are not predicted again.

    Args:
        track: None takes the defaults.
        predictor, inputs, output, formats, recursive, overwrite, max_pixels, options: see `predict_files`.

    Returns:
        As of `predict_files`; films that could not be followed are among its failures. After an interruption in the
        first pass there is no second.

    Raises:
        ValueError: as of `predict_files`; a tracker, line or zone that cannot be.
        OSError: a result cannot be written.
    """
    track = track or TrackOptions()
    track.build()
    TrackCounts(track.lines, track.zones)
    of_frames = [kind for kind in formats if kind not in FILM_FORMATS]
    choices = {"recursive": recursive, "overwrite": overwrite, "max_pixels": max_pixels, **options}
    folder = Path(output)
    files = list_inputs(inputs, recursive, [str(folder / name) for name in FORMATS.values()])
    rule = get_rule(predictor.mapper)
    for file in files:
        if {"T", "Z"} <= set(stack_axes(file.path, rule)):
            raise UserError(
                f"{file.path}: it has several z planes at each time, which are no frames of a film: --project max "
                "makes one image of them"
            )
    summary = predict_files(predictor, inputs, output, formats=list(dict.fromkeys([*of_frames, "coco"])), **choices)
    if summary.interrupted:
        return summary
    failed = {name for name, _ in summary.failures}
    of_films = [kind for kind in FILM_FORMATS if kind in formats]
    chosen = overwrite, options.get("progress", True), options.get("pixel_size")
    run, done = _Run(predictor, rule, folder, track, of_films, *chosen), []
    with lock_folder(folder, folder / ".records" / "lock", "wait or choose another"), pixel_limit(max_pixels):
        for film in list_films(files, rule):
            if failed.issuperset(film.labels):
                continue
            try:
                run.follow(film, failed)
                done.append(film.name)
            except ValueError as error:
                summary.failures.append((film.name, str(error).removeprefix(f"{film.name}: ")))
                print(f"predict: {error}", file=sys.stderr)
        for name, ending in ((_TABLE, ""), (_COUNTS, "_counts")):
            merge_rows(folder / name, [folder / _FOLDER / f"{film}{ending}.csv" for film in done])
    return summary


@dataclass(frozen=True)
class _Run:
    """The second pass of `track_files`."""

    predictor: Predictor
    rule: ChannelRule
    output: Path
    track: TrackOptions
    formats: Sequence[str]
    overwrite: bool
    progress: bool
    pixel_size: float | None  # micrometres, in place of what a file says

    def follow(self, film: Film, failed: set[str]) -> None:
        """Write the results of a film, unless they are there.

        Raises:
            ValueError: its frames have different sizes, or cannot be read any more.
        """
        frames = StoredFrames(self.output, film, failed, self.predictor.category_ids)
        rate = None if film.is_folder else read_frame_rate(film.files[0].path)
        table = self.output / _FOLDER / f"{film.name}.csv"
        counts_table = self.output / _FOLDER / f"{film.name}_counts.csv"
        results = {kind: self.output / FORMATS[kind] / f"{film.name}{FILM_FORMATS[kind]}" for kind in self.formats}
        record = self.output / ".records" / _FOLDER / f"{film.name}.json"
        state = self._state(frames, rate)
        paths = (table, counts_table, *results.values())
        earlier, there = _read(record), [path for path in paths if path.exists()]
        if earlier == state and len(there) == len(paths):
            return
        if earlier is None and there and not self.overwrite:
            raise UserError(
                f"{film.name}: {there[0]} is there already and not of an earlier run: choose another output folder, or "
                "replace it with --overwrite"
            )
        for path in (record, *paths):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(record, b"{}")  # what is written from here on is ours
        size = self._size(film)
        identities, parents = _follow(self.track.build(), frames, size)

        def tracked() -> Iterator[TrackedFrame]:
            pairs = zip(frames.instances(size), identities, strict=True)
            return (TrackedFrame(number, *pair) for number, pair in enumerate(pairs, start=1))

        names = self.predictor.class_names
        write = partial(write_track_table, video=film.name, class_names=names, rate=rate, parents=parents)
        write_atomically(table, lambda file: write(file, tracked()))
        counts = TrackCounts(self.track.lines, self.track.zones)
        for frame in tracked():
            counts.add(frame)
        write_atomically(counts_table, partial(write_rows, rows=counts.rows(film.name, names)))
        for kind, path in results.items():
            if kind == "overlay":
                shown = rate if rate and rate >= 1 else _UNTIMED_RATE
                pictures = self._pictures(film, tracked(), size)
                write_atomically(path, partial(write_film, pictures=pictures, rate=shown))
            else:
                last = max((int(each.max(initial=0)) for each in identities), default=0)
                facts = {"film": film, "size": size, "last": last, "pixel_size": self.pixel_size}
                write_atomically(path, partial(_write_labels, frames=tracked(), **facts))
        write_atomically(record, json.dumps(state).encode())

    def _state(self, frames: StoredFrames, rate: float | None) -> dict[str, str]:
        """What the results of a film depend on, besides its pixels."""
        depends = self.track, self.formats, rate, self.predictor.class_names, self.pixel_size
        digest = hashlib.sha256(repr(depends).encode())
        for content in frames.contents():
            digest.update(hashlib.sha256(content).digest())
        return {"depends": digest.hexdigest()}

    def _size(self, film: Film) -> tuple[int, int]:
        """(height, width) of the first frame that can be read."""
        for image in film.images(self.rule):
            try:
                if image is not None:
                    with image.open() as windows:
                        return windows.shape[:2]
            except (ValueError, OSError):  # it was named in the first pass
                continue
        raise UserError(f"{film.name}: no frame can be read")

    def _pictures(self, film: Film, frames: Iterator[TrackedFrame], size: tuple[int, int]) -> Iterator[np.ndarray]:
        """The frames with their tracks drawn in; one that cannot be read is black."""
        counts = TrackCounts(self.track.lines, self.track.zones)
        painter, channels = TrackPainter(counts=counts), self.rule.count or 3
        with closing(film.images(self.rule)) as images:
            bar = tqdm(frames, film.name, len(film.frames), unit="frame", disable=None if self.progress else True)
            for frame, image in zip(bar, images, strict=False):  # a video that breaks off says so at its end
                counts.add(frame)
                picture = np.zeros((*size, 3), dtype=np.uint8)
                with suppress(ValueError, OSError):  # as above
                    if image is not None:
                        with image.open() as windows:
                            picture = reduced_picture(windows, channels=channels)
                yield painter.draw(picture, frame)


def _follow(
    tracker: MaskTracker | ByteTracker, frames: StoredFrames, size: tuple[int, int]
) -> tuple[list[np.ndarray], dict[int, int]]:
    """Identities [N] of the objects of each frame, and the mother of each daughter.

    Identities count from 1 in the order of appearance; objects of a single frame have 0, unless there is one frame.
    """
    found = [tracker.update(instances) for instances in frames.instances(size)]
    seen = Counter(identity for each in found for identity in each.tolist())
    least, numbers = min(2, len(found)), itertools.count(1)
    kept = {each: next(numbers) if each and times >= least else 0 for each, times in seen.items()}
    parents = getattr(tracker, "parents", {}).items()
    renumbered = [np.array([kept[each] for each in identities.tolist()], dtype=np.int64) for identities in found]
    return renumbered, {kept[child]: kept[parent] for child, parent in parents if kept.get(child)}


def _write_labels(
    file: Any, film: Film, frames: Iterator[TrackedFrame], size: tuple[int, int], last: int, pixel_size: float | None
) -> None:
    """Label images of all frames as one TIFF [T, H, W], in which `last` is the largest identity."""
    calibration = get_calibration(None if film.is_folder else film.files[0].path, pixel_size)

    def planes() -> Iterator[np.ndarray]:
        for frame in frames:
            instances = frame.instances
            labels = rles_to_label_map(instances.pred_masks_rle, instances.scores.tolist(), *size)
            yield np.concatenate([[0], frame.identities]).astype(label_type(last))[labels]

    write_planes(file, planes(), (len(film.frames), *size), "TYX", label_type(last), calibration)


def _read(record: Path) -> dict[str, str] | None:
    try:
        return json.loads(record.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
