"""Identities of objects through the frames of a film: each frame's objects are matched to the tracks so far.

Masks are compared where boxes would be in a tracker of the SORT family (Bewley et al., "Simple Online and Realtime
Tracking", 2016): in dense scenes the boxes of neighbours overlap, their masks do not.

Shape shorthand: N objects of a frame, T tracks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from detectron2.structures import Instances
from scipy.optimize import linear_sum_assignment

from maskrcnn_plus.inference.frame_objects import FrameObject, list_objects

_SURE_IOU = 0.35
"""Pairs of at least this IoU are matched before all others."""

_REACH = 1.5
"""Farthest that an object may be from where its track expects it, in diameters of the larger of the two."""

_HIDDEN = 0.1
"""Share of an object that others cover from which on its whole is what it was before."""

_SMOOTHING = 0.4
"""Weight of the newest displacement in a track's velocity."""

_COASTING = 5
"""Frames for which a lost track keeps moving."""

_LEAST_AGE = 5
"""Frames in which an object must have been seen to divide: a track that has just begun may be a part of another."""


@dataclass
class _Track:
    """An identity, what was seen of it last, and its velocity (x, y) in pixels a frame.

    `whole` is what it looks like where nothing hides it, and where that was in the last frame in which it was seen.
    `missed` counts the frames since it was seen, `seen` those in which it was.
    """

    identity: int
    last: FrameObject
    whole: FrameObject
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))
    missed: int = 0
    seen: int = 1

    @property
    def shift(self) -> np.ndarray:
        """Where it should be in the next frame, from where it was seen (x, y), pixels."""
        return self.velocity * min(self.missed + 1, _COASTING)

    def follow(self, found: FrameObject, occupied: np.ndarray) -> None:
        """It is seen again, in a frame whose objects occupy the pixels of a map [H, W]."""
        moved = self.whole.move(self.shift)
        is_hidden = moved.hidden_area(found, occupied) >= _HIDDEN * moved.area and found.area < moved.area
        whole = moved.fit(found, occupied) if is_hidden else found
        displacement = (whole.centre - self.whole.centre) / (self.missed + 1)
        weight = 1 if self.seen == 1 else _SMOOTHING
        self.velocity = (1 - weight) * self.velocity + weight * displacement
        self.last, self.whole, self.missed, self.seen = found, whole, 0, self.seen + 1


class MaskTracker:
    """Tracks by the IoU of masks, moved by each track's velocity, and by distance where masks do not meet.

    Each frame's objects are assigned to the tracks in two rounds, each an optimal assignment: first the pairs whose
    masks overlap well, then the others within reach, by IoU and distance in equal parts. An object without a track
    begins one. A track without an object moves on for a few frames and is found again where an object appears near it.
    What passes below another object is expected whole: pixels of others count neither for nor against it, and where it
    is follows from where its whole fits what can be seen.

    Attributes:
        parents: with `divisions`, the identity that each daughter came from.
    """

    def __init__(self, memory: int = 30, divisions: bool = False) -> None:
        """Start without tracks.

        Args:
            memory: frames after which a lost track ends.
            divisions: objects are cells that divide: where an object falls into two halves, its track ends and two
                begin.

        Raises:
            ValueError: `memory` is negative.
        """
        if memory < 0:
            raise ValueError(f"memory is {memory}, it must be 0 frames or more")
        self.memory, self.divisions = memory, divisions
        self.parents: dict[int, int] = {}
        self._tracks: list[_Track] = []
        self._last_identity = 0

    def update(self, instances: Instances) -> np.ndarray:
        """Match the objects of the next frame.

        Args:
            instances: with `pred_boxes` and, of a model with masks, `pred_masks_rle` or `pred_masks`; of a model
                without, boxes take the place of masks.

        Returns:
            The identity of each object, int64 [N], from 1 in the order of appearance.
        """
        objects = list(list_objects(instances))
        identities = np.zeros(len(objects), dtype=np.int64)
        occupied = np.zeros(instances.image_size, dtype=bool)
        for each in objects:
            each.draw(occupied)
        matches = self._match(objects, occupied)
        if self.divisions:
            self._divide(objects, matches)
        for index, track in matches.items():
            track.follow(objects[index], occupied)
        followed = {track.identity for track in matches.values()}
        for track in self._tracks:
            track.missed += track.identity not in followed
        self._tracks = [track for track in self._tracks if track.missed <= self.memory]
        for index, each in enumerate(objects):
            track = matches.get(index) or self._begin(each)
            identities[index] = track.identity
        return identities

    def _begin(self, first: FrameObject) -> _Track:
        """A new track."""
        self._last_identity += 1
        self._tracks.append(_Track(self._last_identity, first, first))
        return self._tracks[-1]

    def _match(self, objects: list[FrameObject], occupied: np.ndarray) -> dict[int, _Track]:
        """The track of each object that belongs to one, by the object's index."""
        if not objects or not self._tracks:
            return {}
        wholes = [track.whole.move(track.shift) for track in self._tracks]
        parts = [track.last.move(track.shift) for track in self._tracks]
        expected = np.array([track.whole.centre + track.shift for track in self._tracks])  # [T, 2]
        centres = np.array([each.centre for each in objects])  # [N, 2]
        sizes = [np.array([each.diameter for each in some]) for some in (wholes, objects)]
        distances = np.linalg.norm(expected[:, None] - centres[None], axis=2)
        distances /= np.maximum(sizes[0][:, None], sizes[1][None])  # [T, N], diameters
        ious, visible = np.zeros_like(distances), np.zeros_like(distances)
        for row, column in zip(*np.nonzero(distances < _REACH), strict=True):
            ious[row, column] = parts[row].iou(objects[column])
            visible[row, column] = wholes[row].visible_iou(objects[column], occupied)
        matches: dict[int, _Track] = {}
        rows, columns = np.arange(len(ious)), np.arange(len(objects))
        near = np.clip(visible / 2 + (1 - distances / _REACH) / 2, 0, None)
        for similarity in (np.where(ious >= _SURE_IOU, ious, 0), np.where(distances < _REACH, near, 0)):
            rest = similarity[np.ix_(rows, columns)]
            pairs = [pair for pair in zip(*linear_sum_assignment(rest, maximize=True), strict=True) if rest[pair] > 0]
            matches.update((int(columns[column]), self._tracks[rows[row]]) for row, column in pairs)
            rows = np.delete(rows, [row for row, _ in pairs])
            columns = np.delete(columns, [column for _, column in pairs])
        return matches

    def _divide(self, objects: list[FrameObject], matches: dict[int, _Track]) -> None:
        """End the tracks of objects that fell into two, and begin two for each, which are put among the matches."""
        for index, free in enumerate(objects):
            if index in matches:
                continue
            sisters = {k: _division_error(track, objects[k], free) for k, track in matches.items()}
            sister = min(sisters, key=sisters.get, default=None)
            if sister is None or sisters[sister] > 1:
                continue
            mother = matches[sister]
            self._tracks.remove(mother)
            for daughter in sorted((sister, index)):
                matches[daughter] = self._begin(objects[daughter])
                self.parents[matches[daughter].identity] = mother.identity


def _division_error(mother: _Track, one: FrameObject, other: FrameObject) -> float:
    """How badly two objects fit as the daughters of a track's object in the frame before; above 1 they do not.

    They are of similar size, make up the mother's area, lie around where it should be and touch it.
    """
    small, large, whole = *sorted((one.area, other.area)), mother.last.area
    sizes_fit = large < 0.8 * whole and small > 0.35 * large and 0.6 < (small + large) / whole < 1.6
    if mother.missed or mother.seen < _LEAST_AGE or not sizes_fit:
        return np.inf
    middle = (one.area * one.centre + other.area * other.centre) / (one.area + other.area)
    apart = max(np.linalg.norm(each.centre - mother.last.centre) for each in (one, other))
    if apart > 1.1 * mother.last.diameter:
        return np.inf
    return float(np.linalg.norm(middle - mother.last.centre - mother.velocity) / (0.3 * mother.last.diameter))
