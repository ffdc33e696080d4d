"""Identities of objects through the frames of a film: each frame's objects are matched to the tracks so far.

Masks are compared where boxes would be in a tracker of the SORT family (Bewley et al., "Simple Online and Realtime
Tracking", 2016): in dense scenes the boxes of neighbours overlap, their masks do not.

Shape shorthand: N objects of a frame, T tracks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from detectron2.structures import Instances
from scipy.optimize import linear_sum_assignment

from maskrcnn_plus.arrays import as_array
from maskrcnn_plus.masks.measure import rle_areas
from maskrcnn_plus.masks.rle_masks import instance_masks
from maskrcnn_plus.results.supervision import compact_mask

_SURE_IOU = 0.4
"""Pairs of at least this IoU are matched before all others."""

_REACH = 1.5
"""Farthest that an object may be from where its track expects it, in diameters of the larger of the two."""

_SMOOTHING = 0.4
"""Weight of the newest displacement in a track's velocity."""

_COASTING = 5
"""Frames for which a lost track keeps moving."""

_LEAST_AGE = 5
"""Frames in which an object must have been seen to divide: a track that has just begun may be a part of another."""


@dataclass(frozen=True)
class _Object:
    """An object of one frame.

    Attributes:
        left, top: of its bounding box, pixels.
        mask: [h, w] bool, in that box.
        centre: (x, y) of the mask, pixels.
        area: pixels.
    """

    left: int
    top: int
    mask: np.ndarray
    centre: np.ndarray
    area: int

    @property
    def diameter(self) -> float:
        """Of a disc of the same area, pixels."""
        return 2 * np.sqrt(self.area / np.pi)


@dataclass
class _Track:
    """An identity, what was seen of it last, and its velocity (x, y) in pixels a frame.

    `missed` counts the frames since it was seen, `seen` those in which it was.
    """

    identity: int
    last: _Object
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))
    missed: int = 0
    seen: int = 1

    @property
    def shift(self) -> np.ndarray:
        """Where it should be in the next frame, from where it was seen (x, y), pixels."""
        return self.velocity * min(self.missed + 1, _COASTING)

    def follow(self, found: _Object) -> None:
        """It is seen again."""
        displacement = (found.centre - self.last.centre) / (self.missed + 1)
        weight = 1 if self.seen == 1 else _SMOOTHING
        self.velocity = (1 - weight) * self.velocity + weight * displacement
        self.last, self.missed, self.seen = found, 0, self.seen + 1


class MaskTracker:
    """Tracks by the IoU of masks, moved by each track's velocity, and by distance where masks do not meet.

    Each frame's objects are assigned to the tracks in two rounds, each an optimal assignment: first the pairs whose
    masks overlap well, then the others within reach, by IoU and distance in equal parts. An object without a track
    begins one. A track without an object moves on for a few frames and is found again where an object appears near it.

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
        objects = list(_objects(instances))
        identities = np.zeros(len(objects), dtype=np.int64)
        matches = self._match(objects)
        if self.divisions:
            self._divide(objects, matches)
        for index, track in matches.items():
            track.follow(objects[index])
        followed = {track.identity for track in matches.values()}
        for track in self._tracks:
            track.missed += track.identity not in followed
        self._tracks = [track for track in self._tracks if track.missed <= self.memory]
        for index, each in enumerate(objects):
            track = matches.get(index) or self._begin(each)
            identities[index] = track.identity
        return identities

    def _begin(self, first: _Object) -> _Track:
        """A new track."""
        self._last_identity += 1
        self._tracks.append(_Track(self._last_identity, first))
        return self._tracks[-1]

    def _match(self, objects: list[_Object]) -> dict[int, _Track]:
        """The track of each object that belongs to one, by the object's index."""
        if not objects or not self._tracks:
            return {}
        expected = np.array([track.last.centre + track.shift for track in self._tracks])  # [T, 2]
        centres = np.array([each.centre for each in objects])  # [N, 2]
        sizes = [np.array([each.diameter for each in some]) for some in ([t.last for t in self._tracks], objects)]
        distances = np.linalg.norm(expected[:, None] - centres[None], axis=2)
        distances /= np.maximum(sizes[0][:, None], sizes[1][None])  # [T, N], diameters
        ious = np.zeros_like(distances)
        for row, column in zip(*np.nonzero(distances < _REACH), strict=True):
            track = self._tracks[row]
            ious[row, column] = _shifted_iou(track.last, objects[column], track.shift)
        matches: dict[int, _Track] = {}
        rows, columns = np.arange(len(ious)), np.arange(len(objects))
        near = np.clip(ious / 2 + (1 - distances / _REACH) / 2, 0, None)
        for similarity in (np.where(ious >= _SURE_IOU, ious, 0), np.where(distances < _REACH, near, 0)):
            rest = similarity[np.ix_(rows, columns)]
            pairs = [pair for pair in zip(*linear_sum_assignment(rest, maximize=True), strict=True) if rest[pair] > 0]
            matches.update((int(columns[column]), self._tracks[rows[row]]) for row, column in pairs)
            rows = np.delete(rows, [row for row, _ in pairs])
            columns = np.delete(columns, [column for _, column in pairs])
        return matches

    def _divide(self, objects: list[_Object], matches: dict[int, _Track]) -> None:
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


def _division_error(mother: _Track, one: _Object, other: _Object) -> float:
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


def _objects(instances: Instances) -> Iterator[_Object]:
    """The objects of a frame; one whose mask has no pixel, or that has no mask, is its box."""
    boxes = as_array(instances.pred_boxes.tensor)
    has_masks = instances.has("pred_masks_rle") or instances.has("pred_masks")
    masks = instance_masks(instances) if has_masks else None
    areas = np.zeros(len(boxes), dtype=np.int64) if masks is None else rle_areas(masks)
    crops = None if masks is None else compact_mask(masks)
    for index, (box, area) in enumerate(zip(boxes, areas.tolist(), strict=True)):
        if area:
            left, top = crops.offsets[index].tolist()
            mask = crops.crop(index)
        else:
            left, top, right, bottom = np.rint(box).astype(int).tolist()
            mask = np.ones((max(bottom - top, 1), max(right - left, 1)), dtype=bool)
        rows, columns = mask.sum(axis=1), mask.sum(axis=0)
        total = int(rows.sum())
        x, y = columns @ np.arange(len(columns)) / total, rows @ np.arange(len(rows)) / total
        yield _Object(left, top, mask, np.array([left + x + 0.5, top + y + 0.5]), total)


def _shifted_iou(a: _Object, b: _Object, shift: np.ndarray) -> float:
    """IoU of the masks of two objects, after that of `a` is moved by a shift (x, y), to whole pixels."""
    right, down = np.rint(shift).astype(int).tolist()
    left_a, top_a = a.left + right, a.top + down
    left, top = max(left_a, b.left), max(top_a, b.top)
    width = min(left_a + a.mask.shape[1], b.left + b.mask.shape[1]) - left
    height = min(top_a + a.mask.shape[0], b.top + b.mask.shape[0]) - top
    if width <= 0 or height <= 0:
        return 0.0
    part_a = a.mask[top - top_a :, left - left_a :][:height, :width]
    part_b = b.mask[top - b.top :, left - b.left :][:height, :width]
    shared = np.count_nonzero(part_a & part_b)
    return shared / (a.area + b.area - shared)
