"""Objects of a frame as a tracker sees them: masks in their boxes, moved, overlapped and fitted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from detectron2.structures import Instances

from maskrcnn_plus.arrays import as_array
from maskrcnn_plus.masks.measure import rle_areas
from maskrcnn_plus.masks.rle_masks import instance_masks
from maskrcnn_plus.results.supervision import compact_mask

_STEPS = 8
"""Farthest that an object is looked for around where it should be, pixels."""

_PULL = 0.01
"""How much better an object must fit for each pixel that it is farther from where it should be."""

_NEIGHBOURS = ((1, 0), (-1, 0), (0, 1), (0, -1))


@dataclass(frozen=True)
class FrameObject:
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

    def move(self, shift: Sequence[float]) -> FrameObject:
        """The object elsewhere, by a shift (x, y) to whole pixels."""
        x, y = np.rint(shift).astype(int).tolist()
        return replace(self, left=self.left + x, top=self.top + y, centre=self.centre + np.array([x, y]))

    def shared_area(self, other: FrameObject) -> int:
        """Pixels of both."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        width = min(self.left + self.mask.shape[1], other.left + other.mask.shape[1]) - left
        height = min(self.top + self.mask.shape[0], other.top + other.mask.shape[0]) - top
        if width <= 0 or height <= 0:
            return 0
        part = self.mask[top - self.top :, left - self.left :][:height, :width]
        return np.count_nonzero(part & other.mask[top - other.top :, left - other.left :][:height, :width])

    def iou(self, other: FrameObject) -> float:
        """Intersection over union of the masks."""
        shared = self.shared_area(other)
        return shared / (self.area + other.area - shared)

    def visible_iou(self, found: FrameObject, occupied: np.ndarray) -> float:
        """IoU with what is found of it, where the pixels of other objects, which may hide it, do not count."""
        mask, below = self._cut(occupied)
        return self.shared_area(found) / (found.area + np.count_nonzero(mask & ~below))

    def hidden_area(self, found: FrameObject, occupied: np.ndarray) -> int:
        """Pixels that are another object's in a frame where this one is found."""
        mask, below = self._cut(occupied)
        return np.count_nonzero(mask & below) - self.shared_area(found)

    def fit(self, found: FrameObject, occupied: np.ndarray) -> FrameObject:
        """The object moved to where it agrees best with what is found of it, uphill from where it is."""
        here, best = self, self.visible_iou(found, occupied)
        for _ in range(_STEPS):
            options = [here.move(step) for step in _NEIGHBOURS]
            away = [np.linalg.norm(each.centre - self.centre) for each in options]
            fits = [each.visible_iou(found, occupied) - _PULL * far for each, far in zip(options, away, strict=True)]
            top = int(np.argmax(fits))
            if fits[top] <= best:
                break
            here, best = options[top], fits[top]
        return here

    def draw(self, occupied: np.ndarray) -> None:
        """Set its pixels in a map [H, W] of the frame."""
        mask, below = self._cut(occupied)
        below |= mask

    def _cut(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The parts of the mask and of a map of the frame that lie on one another."""
        height, width = self.mask.shape
        top, left = max(-self.top, 0), max(-self.left, 0)
        below = frame[max(self.top, 0) : max(self.top + height, 0), max(self.left, 0) : max(self.left + width, 0)]
        return self.mask[top : top + below.shape[0], left : left + below.shape[1]], below


def list_objects(instances: Instances) -> Iterator[FrameObject]:
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
        yield FrameObject(left, top, mask, np.array([left + x + 0.5, top + y + 0.5]), total)
