"""How large the objects of an image are, found by looking at it with a detector, from afar and then nearer.

1. A look is a prediction of boxes at one scale. The first one sees the longer side of the image as 64 pixels, each
   further one twice as large. A look has at most `LOOK_PIXELS` pixels: where the image has more, it sees a window of
   the look before, there where most was found, or, if nothing was, where texture is fullest.
2. The evidence of a look is the sum of (2 score - 1)^2 of what it finds, less for what is far from the wanted
   diameter (half at 1.2 octaves). Objects of about this size have the highest scores, smaller ones are not seen, and
   clumps that look like objects from afar, or parts that do so from near, have lower ones. So evidence has a maximum at
   the right scale. They are compared where both have looked, and pieces of one object count as one. They end where
   evidence falls, or where objects are so large that it must, once what was found is more than a few objects, and what
   was found last is not seen too small.
3. The median diameter in the best look, weighted by (2 score - 1)^2, is the estimate: of the objects, not of their
   area, as the median of annotations in training is. The best look may miss small objects, and the one after it large
   ones: where both find about as much, it is their geometric mean.

The looks depend on the shape of an image and not on its number of pixels, so that an image and its magnified copy are
scaled to the same. An image without objects costs the looks up to the largest magnification.

Shape shorthand: [h, w, C] an image or a part of one in 0..255, N objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.structures import Instances

from maskrcnn_plus.data.pixels import resize_pixels
from maskrcnn_plus.inference.texture import Window, cut_window, find_texture

LOOK_PIXELS = 320**2
"""Most pixels of the network's input in one look."""

_FIRST_SIDE, _TEXTURE_SIDE = 64, 128
_LEAST_SCORE, _LEAST_EVIDENCE, _SURE_EVIDENCE = 0.5, 0.1, 2.0
_SPREAD = 1.0  # octaves: deviation of diameters that the network sees well
_GAIN, _FALLS = 1.05, 0.6  # of the best evidence: what is better, and where the looks end
_SOME = 0.25  # of the best evidence: what is seen too small may be better from near
_SMALL, _LARGE = 0.6, 1.5  # of the wanted diameter: below, the next look may see more; above, it cannot
_PIECE = 0.6  # of the diameter of an object: below, it is a piece of it
_ALL, _TISSUE = 0.5, 8  # of a look's area: more is filled; pieces of it that count as much as an object that fills it
_FEW = 0.25  # evidence that is too little to compare
_NEAR = 1.25  # of the wanted diameter: above, the best look misses no small objects
_CLOSE = 0.75  # octaves from the scale of the best look to that of the estimate: more need another look

Detect = Callable[[np.ndarray], Instances]
"""[h, w, C] -> `pred_boxes` (xyxy, pixels) and `scores` of the objects that the network sees in it."""


@dataclass
class Look:
    """What is found at one scale.

    Attributes:
        scale: pixels of the network's input for one of the image.
        windows: that are looked at, one a part.
        part: index of the part of each object [N].
        boxes: of the objects in their part, xyxy in pixels of the image, float [N, 4].
        sureness: (2 score - 1)^2 of each, float [N].
        weights: evidence of each: less than its sureness where its diameter is not what the network knows best.
        is_whole: bool [N]; the others are cut by a window, and not by the image.
        value: evidence, comparable between looks.
    """

    scale: float
    windows: list[Window]
    part: np.ndarray
    boxes: np.ndarray
    sureness: np.ndarray
    weights: np.ndarray
    is_whole: np.ndarray
    value: float = 0.0

    @property
    def evidence(self) -> float:
        """Sum of the weights."""
        return float(self.weights.sum())

    @property
    def diameter(self) -> float:
        """The weighted median of whole objects, pixels of the image; of all, where none is whole."""
        chosen = self.is_whole if self.is_whole.any() else slice(None)
        diameters, weights = _diameters(self.boxes)[chosen], self.sureness[chosen]
        order = np.argsort(diameters, kind="stable")
        sums = np.cumsum(weights[order])
        return float(diameters[order][np.searchsorted(sums, sums[-1] / 2)])

    def of(self, part: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, weights and `is_whole` of the objects in a part."""
        chosen = self.part == part
        return self.boxes[chosen], self.weights[chosen], self.is_whole[chosen]

    def richest(self, part: int, size: tuple[int, int]) -> Window | None:
        """The window of (width, height) about an object in which the weights are highest; None without objects."""
        boxes, weights, _ = self.of(part)
        if not len(boxes):
            return None
        points = _centres(boxes)
        x, y, width, height = self.windows[part]
        starts = np.rint(points - np.array(size) / 2)
        starts = np.clip(starts, (x, y), (x + width - size[0], y + height - size[1]))  # [N, 2]
        within = (points[None] >= starts[:, None]) & (points[None] < starts[:, None] + size)  # [N, N, 2]
        best = int(np.argmax(within.all(axis=2) @ weights))
        return int(starts[best, 0]), int(starts[best, 1]), *size


def estimate_diameter(
    parts: Sequence[np.ndarray], detect: Detect, wanted: float, limits: tuple[float, float]
) -> float | None:
    """Estimate the median diameter of the objects of an image; see the top of this file.

    Args:
        parts: images [h, w, C] in 0..255 of one scale: the image, or parts of it.
        detect: the network.
        wanted: the diameter that the network knows best, pixels of its input.
        limits: (least, largest) scale to look at.

    Returns:
        Pixels of the image; None where nothing is found.
    """
    scale = min(max(_FIRST_SIDE / max(max(part.shape[:2]) for part in parts), limits[0]), limits[1])
    look = _look(parts, detect, scale, wanted, None, [(0, 0, part.shape[1], part.shape[0]) for part in parts])
    looks, best = [look], look if look.evidence >= _LEAST_EVIDENCE else None
    while look.scale < limits[1] and not (best and _is_past(look, best, wanted)):
        look = _look(parts, detect, min(2 * look.scale, limits[1]), wanted, look, look.windows)
        look.value = _value(look, best)
        looks.append(look)
        if look.evidence >= _LEAST_EVIDENCE and (best is None or look.value > _GAIN * best.value):
            best = look
    if best is None:
        return None
    nearer = next((look for look in looks if look.scale > best.scale and look.evidence > 0), None)
    diameter = _combine(best, nearer, wanted)
    scale = min(max(wanted / diameter, limits[0]), limits[1])
    if abs(math.log2(scale / best.scale)) < _CLOSE:
        return diameter
    before = next((look for look in reversed(looks) if look.scale <= scale), looks[0])
    look = _look(parts, detect, scale, wanted, before, before.windows)
    look.value = _value(look, best)
    is_better = look.evidence >= _LEAST_EVIDENCE and look.value > _FALLS * best.value
    return look.diameter if is_better else diameter


def _is_past(look: Look, best: Look, wanted: float) -> bool:
    """Whether looks that are nearer than this one, which is the last, cannot be better than the best."""
    if look is best or best.evidence < _SURE_EVIDENCE:
        return False
    if look.value > _SOME * best.value and look.diameter * look.scale < _SMALL * wanted:
        return False  # such as the nuclei of cells that look like nuclei from afar
    falls = look.value < _FALLS * best.value and best.diameter * best.scale > _SMALL * wanted
    return falls or best.diameter * look.scale > _LARGE * wanted


def _combine(best: Look, nearer: Look | None, wanted: float) -> float:
    """The diameter by the best look, which misses some small objects, and the one after it, which misses large ones."""
    if nearer is None or nearer.value < _FALLS * best.value or best.diameter * best.scale > _NEAR * wanted:
        return best.diameter
    return math.sqrt(best.diameter * nearer.diameter)


def _value(look: Look, best: Look | None) -> float:
    """The evidence of a look for an area, such that it compares with that of the best before it.

    They are compared by what both have in the windows of the look. Pieces of one object of the best look count as one,
    however many they are: a clump is less sure than the objects in it, and a large object is surer than specks in it.
    But where one seems to fill the look, and more than a few surer ones are in it, it is tissue.
    """
    if best is None:
        return look.evidence / _area(look.windows)
    shared = evidence = 0.0
    for index, (x, y, width, height) in enumerate(look.windows):
        (old, old_weights, _), (new, weights, is_whole) = best.of(index), look.of(index)
        clipped = np.clip(old, (x, y, x, y), (x + width, y + height) * 2)
        inside = (clipped[:, 2:] - clipped[:, :2]).prod(axis=1) / (old[:, 2:] - old[:, :2]).prod(axis=1)  # [M] of old
        shared += float((old_weights * inside).sum())
        owners = _owners(new, old)
        alone = owners < 0
        evidence += float((weights * np.where(is_whole, 1.0, 0.5))[alone].sum())
        fills = (old[:, 2:] - old[:, :2]).prod(axis=1) > _ALL * _area(best.windows[index : index + 1])
        for owner in np.unique(owners[~alone]):
            pieces = weights[owners == owner]
            evidence += inside[owner] * max(float(pieces.mean()), fills[owner] * float(pieces.sum()) / _TISSUE)
    return best.value * (evidence + _FEW) / (shared + _FEW)


def _owners(pieces: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """For each box the smallest of others that holds its centre and is much larger, as an index; -1 without one."""
    points, sizes = _centres(pieces), _diameters(objects)
    if not len(objects):
        return np.full(len(pieces), -1)
    holds = ((points[:, None] >= objects[None, :, :2]) & (points[:, None] < objects[None, :, 2:])).all(axis=2)
    holds &= _diameters(pieces)[:, None] < _PIECE * sizes[None]  # [N, M]
    owners = np.where(holds, sizes[None], np.inf).argmin(axis=1)
    return np.where(holds.any(axis=1), owners, -1)


def _centres(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _diameters(boxes: np.ndarray) -> np.ndarray:
    """Of discs with the area of the ellipses in the boxes."""
    return np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))


def _area(windows: Sequence[Window]) -> int:
    return sum(width * height for _, _, width, height in windows)


def _look(
    parts: Sequence[np.ndarray],
    detect: Detect,
    scale: float,
    wanted: float,
    before: Look | None,
    within: Sequence[Window],
) -> Look:
    """A look at a scale within windows, of which the one before tells where to look."""
    windows = next_windows(parts, before, within, scale)
    found = []
    for index, (part, window) in enumerate(zip(parts, windows, strict=True)):
        x, y, width, height = window
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        instances = detect(resize_pixels(cut_window(part, window), size[::-1]))
        boxes, scores = instances.pred_boxes.tensor.numpy().astype(np.float64), instances.scores.numpy()
        near, far = (x > 0, y > 0), (x + width < part.shape[1], y + height < part.shape[0])
        cut = ((boxes[:, :2] < 1) & near).any(axis=1) | ((boxes[:, 2:] > np.array(size) - 1) & far).any(axis=1)
        kept = (scores > _LEAST_SCORE) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        boxes = boxes[kept] * np.tile([width / size[0], height / size[1]], 2) + (x, y, x, y)
        sureness = (2 * scores[kept].astype(np.float64) - 1) ** 2
        octaves = np.log2(_diameters(boxes) * scale / wanted)
        weights = sureness * np.exp(-((octaves / _SPREAD) ** 2) / 2)
        found.append((np.full(len(boxes), index), boxes, sureness, weights, ~cut[kept]))
    look = Look(scale, windows, *(np.concatenate(each) for each in zip(*found, strict=True)))
    look.value = look.evidence / _area(windows)
    return look


def next_windows(
    parts: Sequence[np.ndarray], before: Look | None, windows: Sequence[Window], scale: float
) -> list[Window]:
    """The windows of a look: those before, or as much of each as a look may have."""
    side = math.sqrt(LOOK_PIXELS / len(parts)) / scale  # pixels of the image
    chosen = []
    for index, (part, window) in enumerate(zip(parts, windows, strict=True)):
        _, _, width, height = window
        if width * height <= side**2:
            chosen.append(window)
            continue
        size = (
            min(width, max(int(side), int(side**2 / height), 1)),
            min(height, max(int(side), int(side**2 / width), 1)),
        )
        found = before.richest(index, size) if before else None
        chosen.append(found or _most_texture(part, window, size))
    return chosen


def _most_texture(part: np.ndarray, window: Window, size: tuple[int, int]) -> Window:
    """The window of (width, height) within another in which texture is fullest."""
    x, y, width, height = window
    texture = find_texture(cut_window(part, window), _TEXTURE_SIDE)
    factors = texture.shape[1] / width, texture.shape[0] / height
    kernel = [max(round(length * factor), 1) for length, factor in zip(size, factors, strict=True)]
    sums = cv2.boxFilter(texture, -1, kernel, anchor=(0, 0), borderType=cv2.BORDER_ISOLATED | cv2.BORDER_CONSTANT)
    row, column = np.unravel_index(int(sums.argmax()), sums.shape)
    left = min(int(column / factors[0]), width - size[0])
    top = min(int(row / factors[1]), height - size[1])
    return x + left, y + top, *size
