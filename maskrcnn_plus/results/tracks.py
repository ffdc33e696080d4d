"""Tracks as tables: a row an object and frame, and how many objects there were in all.

Shape shorthand: N objects of a frame.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import supervision as sv

from maskrcnn_plus.arrays import as_array
from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.masks.measure import rle_areas, rle_centroids
from maskrcnn_plus.results.overlay import class_label
from maskrcnn_plus.results.supervision import to_supervision
from maskrcnn_plus.results.table import as_figure, as_text

if TYPE_CHECKING:
    from detectron2.structures import Instances

COLUMNS = (
    *("video", "id", "parent", "frame", "time_s", "class", "score"),
    *("x0_px", "y0_px", "x1_px", "y1_px", "area_px", "centroid_x_px", "centroid_y_px"),
)
COUNT_COLUMNS = ("video", "where", "class", "count")


@dataclass(frozen=True)
class TrackedFrame:
    """The objects of one frame of a film, and who they are.

    Attributes:
        number: of the frame, from 1.
        instances: with `pred_boxes`, `scores`, `pred_classes` and `pred_masks_rle`.
        identities: int64 [N], from 1; 0 of an object without a track.
    """

    number: int
    instances: Instances
    identities: np.ndarray


def write_track_table(
    file: IO[bytes],
    frames: Iterable[TrackedFrame],
    video: str,
    class_names: Sequence[str] | None = None,
    rate: float | None = None,
    parents: dict[int, int] | None = None,
) -> None:
    """Write a row an object with a track, frame by frame and in each by identity; see `COLUMNS`.

    Args:
        file: binary, open for writing.
        frames: in the order of their numbers, each taken once.
        video: what the column `video` says.
        class_names: name of each class.
        rate: frames a second, for the column `time_s`, which begins at 0; None leaves it empty.
        parents: the identity that another came from by division, for the column `parent`.
    """
    text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for frame in frames:
        instances = frame.instances
        boxes = as_array(instances.pred_boxes.tensor)  # [N, 4]
        areas, centroids = rle_areas(instances.pred_masks_rle), rle_centroids(instances.pred_masks_rle)
        time = "" if rate is None else as_figure((frame.number - 1) / rate)
        for k in np.argsort(frame.identities, kind="stable").tolist():
            identity = int(frame.identities[k])
            if identity == 0:
                continue
            label = as_text(class_label(class_names, int(instances.pred_classes[k])))
            numbers = [float(instances.scores[k]), *boxes[k].tolist(), areas[k], *centroids[k]]
            parent = (parents or {}).get(identity, "")
            writer.writerow([as_text(video), identity, parent, frame.number, time, label, *map(as_figure, numbers)])
    text.detach()  # flushed


@dataclass
class TrackCounts:
    """How many objects a film has: all of them, those that crossed lines and those that were in zones.

    An object's class is that of most of its frames. It is where the centre of its box is. Lines and zones are those of
    supervision.

    Attributes:
        lines: (x0, y0, x1, y1) of each line, pixels.
        zones: corners of each zone, [[x, y], ...], pixels.
    """

    lines: Sequence[Sequence[float]] = ()
    zones: Sequence[Sequence[Sequence[float]]] = ()
    _classes: dict[int, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))  # of each identity
    _crossings: list[tuple[str, int]] = field(default_factory=list)  # (where, identity), in any number
    _inside: dict[str, set[int]] = field(default_factory=dict)  # identities that were in each zone

    def __post_init__(self) -> None:
        for line in self.lines:
            if len(line) != 4 or not np.isfinite(line).all() or tuple(line[:2]) == tuple(line[2:]):
                raise ValueError(f"line {line}: it must be x0, y0, x1, y1 in pixels, two different points")
        for zone in self.zones:
            if len(zone) < 3 or any(len(corner) != 2 for corner in zone) or not np.isfinite(zone).all():
                raise ValueError(f"zone {zone}: it must be the x, y of three corners or more, in pixels")
        centre = (sv.Position.CENTER,)
        ends = [(sv.Point(*line[:2]), sv.Point(*line[2:])) for line in self.lines]
        self.line_zones = [sv.LineZone(start, end, triggering_anchors=centre) for start, end in ends]
        self.polygon_zones = [
            sv.PolygonZone(np.rint(zone).astype(int), triggering_anchors=centre) for zone in self.zones
        ]
        self._inside = {f"zone {k}": set() for k in range(1, len(self.zones) + 1)}

    def add(self, frame: TrackedFrame) -> None:
        """Count the objects of the next frame."""
        detections = tracked_detections(frame)
        identities = detections.tracker_id.tolist()
        for identity, kind in zip(identities, detections.class_id.tolist(), strict=True):
            self._classes[identity][kind] += 1
        for number, line in enumerate(self.line_zones, start=1):
            for side, crossed in zip(("left", "right"), line.trigger(detections), strict=True):
                self._crossings += [(f"line {number} to the {side}", identities[k]) for k in np.flatnonzero(crossed)]
        for number, zone in enumerate(self.polygon_zones, start=1):
            inside = zone.trigger(detections)
            self._inside[f"zone {number}"].update(identities[k] for k in np.flatnonzero(inside))

    def rows(self, video: str, class_names: Sequence[str] | None = None) -> list[list[str]]:
        """Rows of `COUNT_COLUMNS`: objects in all, crossings of each line to either side, objects seen in each zone.

        Every class that the film has is named with each of them, with 0 too.
        """
        kinds = {
            identity: min(votes, key=lambda kind: (-votes[kind], kind)) for identity, votes in self._classes.items()
        }
        present = sorted(set(kinds.values()))
        places = {"everywhere": Counter(kinds.values())}
        for number in range(1, len(self.lines) + 1):
            for side in ("left", "right"):
                places[f"line {number} to the {side}"] = Counter()
        for where, identity in self._crossings:
            places[where][kinds[identity]] += 1
        for where, inside in self._inside.items():
            places[where] = Counter(kinds[identity] for identity in inside)
        return [
            [as_text(video), where, as_text(class_label(class_names, kind)), str(counts[kind])]
            for where, counts in places.items()
            for kind in present
        ]


def tracked_detections(frame: TrackedFrame) -> sv.Detections:
    """The objects with a track as supervision's type, with boxes and `tracker_id`."""
    kept = np.flatnonzero(frame.identities)
    detections = to_supervision(frame.instances)[kept]
    detections.tracker_id = frame.identities[kept].astype(int)
    return detections


def write_rows(file: IO[bytes], rows: Sequence[Sequence[str]]) -> None:
    """Write rows of `COUNT_COLUMNS` below a header."""
    text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
    csv.writer(text, lineterminator="\n").writerows([COUNT_COLUMNS, *rows])
    text.detach()  # flushed


def merge_rows(path: Path, parts: Sequence[Path]) -> None:
    """Write the rows of all films' tables as one table; without films there is none."""

    def write(file: IO[bytes]) -> None:
        for number, part in enumerate(parts):
            with open(part, "rb") as lines:
                header = lines.readline()
                if number == 0:
                    file.write(header)
                shutil.copyfileobj(lines, file)

    if parts:
        write_atomically(path, write, durable=True)
