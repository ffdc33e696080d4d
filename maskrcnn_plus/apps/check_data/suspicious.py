"""Annotations that differ from the others of their class: not wrong by any rule, but worth a look.

Every reason has a strength; 1 is the least that is named. For size, shape and fill it grows with the distance from the
median of the class in standard deviations, which are estimated by the median absolute deviation.

Shape shorthand: N objects, in the order of `Statistics`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as coco_mask

from maskrcnn_plus.data.statistics import Statistics, get_boxes, highest_ious
from maskrcnn_plus.evaluation.ground_truth import ground_truth_rles
from maskrcnn_plus.masks.measure import rle_boxes, rle_ious

SHOWN = 12
"""Annotations that are named and drawn."""

SAME_MASK = 0.95
"""IoU of masks from which on two annotations are taken for one object."""

_ENOUGH = 20  # objects of a class, to say what is usual
_DEVIATIONS = 5.0  # from the median on
_LEAST = {"area": 0.25, "shape": 0.2, "fill": 0.05}  # standard deviations are taken to be no smaller
_STRONGEST = 3.0
_OUTLINES = 0.9  # share of their boxes that masks fill at most, where they are no boxes themselves
_LEAST_BOX = 8  # pixels a side: smaller masks fill their boxes by nature
_STRIP = 2.5  # pixels
_PIECES_OF = 2000  # objects whose pieces are counted
_OF_ONE_KIND = 4  # of those shown, if there are enough of other kinds


@dataclass(frozen=True)
class Suspicion:
    """An annotation that is worth a look.

    Attributes:
        image: index of its image.
        number: of the annotation in its image.
        strength: sum of those of its reasons.
        reasons: sentences without a dot, the strongest first.
        kind: of the strongest: "size", "shape", "fill", "repeated", "border", "pieces" or "image".
    """

    image: int
    number: int
    strength: float
    reasons: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class Repeated:
    """Two annotations of an image with the same mask.

    Attributes:
        image: index of the image.
        first, second: numbers of the annotations.
        iou: of their masks.
        same_class: whether they have one class.
    """

    image: int
    first: int
    second: int
    iou: float
    same_class: bool


def find_repeated(records: Sequence[dict[str, Any]]) -> list[Repeated]:
    """Objects of an image with the first one whose mask has an IoU of `SAME_MASK` or more; label images have none.

    Args:
        records: Detectron2 dataset dicts that were checked.
    """
    found = []
    for image, record in enumerate(records):
        numbers = _objects(record)
        if "label_file_name" in record or len(numbers) < 2:
            continue
        boxes = get_boxes([record["annotations"][number] for number in numbers])
        near = [numbers[k] for k in np.flatnonzero(highest_ious(boxes, np.zeros(len(boxes))) >= SAME_MASK - 0.1)]
        if not near:
            continue
        rles = ground_truth_rles({**record, "annotations": [record["annotations"][k] for k in near]})
        ious = np.triu(rle_ious(rles, rles), k=1)
        same = ious >= SAME_MASK
        for b in np.flatnonzero(same.any(axis=0)).tolist():
            a = int(same[:, b].argmax())
            classes = [record["annotations"][near[k]]["category_id"] for k in (a, b)]
            found.append(Repeated(image, near[a], near[b], float(ious[a, b]), classes[0] == classes[1]))
    return found


def find_suspicious(
    records: Sequence[dict[str, Any]], statistics: Statistics, repeated: Sequence[Repeated] = ()
) -> list[Suspicion]:
    """All annotations that are worth a look, the strongest first.

    Args:
        records: Detectron2 dataset dicts that were checked.
        statistics: of `measure` for them.
        repeated: of `find_repeated` for them.
    """
    places = [(image, number) for image, record in enumerate(records) for number in _objects(record)]  # [N]
    reasons: dict[tuple[int, int], list[tuple[float, str, str]]] = defaultdict(list)

    def add(index: int, kind: str, strength: float, text: str) -> None:
        reasons[places[index]].append((min(strength, _STRONGEST), kind, text))

    depths = _border_depths(records, statistics)
    fill, box_areas = statistics.fill, statistics.box_sizes.prod(axis=1)
    ratio = statistics.box_sizes[:, 0] / np.maximum(statistics.box_sizes[:, 1], 1e-6)
    for members in _usual_groups(statistics.classes):
        areas = statistics.areas[members]
        middle = max(float(np.median(areas)), 1.0)
        for k, deviation in _outliers(np.log(np.maximum(areas, 0.5)), _LEAST["area"]):
            factor = max(areas[k], 0.5) / middle
            times = f"{factor:.0f} times" if factor > 1 else f"1/{1 / factor:.0f} of"
            add(members[k], "size", deviation, f"its area of {areas[k]:,} px is {times} the median ({middle:,.0f} px)")
        for k, deviation in _outliers(np.log(np.maximum(ratio[members], 1e-6)), _LEAST["shape"]):
            width, height = statistics.box_sizes[members[k]]
            add(members[k], "shape", deviation, f"its box is {width:.0f} x {height:.0f} px, unlike those of the others")
        usual = float(np.median(fill[members]))
        for k, deviation in _outliers(fill[members], _LEAST["fill"]):
            if fill[members[k]] < usual:
                text = f"its mask fills {fill[members[k]]:.0%} of its box, others {usual:.0%}"
                add(members[k], "fill", deviation, text)
        boxes = (fill[members] >= 0.99) & (statistics.box_sizes[members].min(axis=1) > _LEAST_BOX)
        for k in members[boxes] if usual <= _OUTLINES else ():
            add(k, "fill", 1.0, f"its mask is a whole box, others fill {usual:.0%} of theirs: is it an outline?")
        for k in members[depths[members] <= min(0.25 * np.sqrt(middle), _STRIP)]:
            add(k, "border", 1.0, f"a strip of {depths[k]:.0f} px at the border of the image")
    shares = statistics.areas / np.maximum(statistics.image_sizes[statistics.image_index].prod(axis=1), 1)
    for k in np.flatnonzero(shares >= 0.95):
        if np.median(shares) < 0.5:
            add(k, "image", 2.0, f"its mask covers {shares[k]:.0%} of the image")
    for k, text in _scattered(records, places, statistics, fill * (box_areas > 0)):
        add(k, "pieces", 1.5, text)
    for each in repeated:
        other = "" if each.same_class else " of another class"
        text = f"the same pixels as annotation {each.first}{other} (IoU {each.iou:.2f})"
        reasons[each.image, each.second].append((2.0, "repeated", text))
    found = []
    for (image, number), entries in reasons.items():
        entries.sort(reverse=True)
        texts = tuple(text for _, _, text in entries)
        found.append(Suspicion(image, number, sum(strength for strength, _, _ in entries), texts, entries[0][1]))
    return sorted(found, key=lambda each: (-each.strength, each.image, each.number))


def choose_shown(found: Sequence[Suspicion], count: int = SHOWN) -> list[Suspicion]:
    """The strongest, of each kind a few first, so that many of one kind do not hide the others."""
    of_kind: dict[str, int] = defaultdict(int)
    first, later = [], []
    for each in found:
        of_kind[each.kind] += 1
        (first if of_kind[each.kind] <= _OF_ONE_KIND else later).append(each)
    return sorted((first + later)[:count], key=lambda each: -each.strength)


def _objects(record: dict[str, Any]) -> list[int]:
    """Numbers of the annotations that are no crowds."""
    return [number for number, each in enumerate(record["annotations"]) if not each.get("iscrowd", 0)]


def _usual_groups(classes: np.ndarray) -> list[np.ndarray]:
    """Indices of the objects of each class that has enough to say what is usual."""
    groups = [np.flatnonzero(classes == index) for index in np.unique(classes)]
    return [group for group in groups if len(group) >= _ENOUGH]


def _outliers(values: np.ndarray, least: float) -> list[tuple[int, float]]:
    """Index and strength of values that are far from the median."""
    distance = np.abs(values - np.median(values))
    strength = distance / max(1.4826 * float(np.median(distance)), least) / _DEVIATIONS
    return [(int(k), float(strength[k])) for k in np.flatnonzero(strength >= 1)]


def _border_depths(records: Sequence[dict[str, Any]], statistics: Statistics) -> np.ndarray:
    """Pixels that each object reaches into its image from a border that it touches, float64 [N]; else infinite."""
    objects = [[record["annotations"][number] for number in _objects(record)] for record in records]
    boxes = np.concatenate([np.zeros((0, 4)), *map(get_boxes, objects)])  # [N, 4]
    size = statistics.image_sizes[statistics.image_index][:, ::-1]  # [N, 2] width, height
    touching = (boxes[:, :2] <= 0.5) | (boxes[:, 2:] >= size - 0.5)
    return np.where(touching, boxes[:, 2:] - boxes[:, :2], np.inf).min(axis=1)


def _scattered(
    records: Sequence[dict[str, Any]], places: Sequence[tuple[int, int]], statistics: Statistics, fill: np.ndarray
) -> list[tuple[int, str]]:
    """Objects with a small piece far from the rest, which makes their box large and badly filled."""
    usual = np.ones(len(places))
    for index in np.unique(statistics.classes):
        members = statistics.classes == index
        usual[members] = np.median(fill[members])
    chosen = np.argsort(fill / np.maximum(usual, 1e-6))[:_PIECES_OF]
    chosen = [int(k) for k in chosen if fill[k] < 0.75 * usual[k]]
    of_image = defaultdict(list)
    for k in chosen:
        of_image[places[k][0]].append(k)
    found = []
    for image, members in of_image.items():
        annotations = [records[image]["annotations"][places[k][1]] for k in members]
        for k, rle in zip(members, ground_truth_rles({**records[image], "annotations": annotations}), strict=True):
            text = _far_piece(rle)
            if text is not None:
                found.append((k, text))
    return found


def _far_piece(rle: dict[str, Any]) -> str | None:
    """What to say of a mask with a small piece far from its largest."""
    x0, y0, x1, y1 = rle_boxes([rle])[0].astype(int)
    mask = coco_mask.decode(rle)[y0:y1, x0:x1]  # [h, w]
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    stats = stats[1:]
    if len(stats) < 2:
        return None
    areas, corners = stats[:, cv2.CC_STAT_AREA], stats[:, :2]
    ends = corners + stats[:, 2:4]
    main = int(areas.argmax())
    gaps = np.maximum(np.maximum(corners - ends[main], corners[main] - ends), 0).max(axis=1)  # pixels between boxes
    far = (areas < 0.2 * areas[main]) & (gaps > max(np.sqrt(areas[main]), _LEAST_BOX))
    if not far.any():
        return None
    worst = int(np.where(far, gaps, -1).argmax())
    return f"a piece of {areas[worst]} px lies {gaps[worst]} px away from the rest"
