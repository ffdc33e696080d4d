"""Which objects of a COCO file are crowds: regions of many objects that are neither learned nor counted.

COCO marks them by `iscrowd=1` and an RLE. Some annotation tools write `iscrowd=1` for every mask that is drawn with a
brush, others for those with holes or several parts, all of single objects. Real crowds are far larger than the single
objects of their class.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

_MANY = 0.1  # of all objects; in COCO itself 1 % are crowds
_MIN_RLES = 3
_LARGE = 4  # times the median object of its class, by boxes; in COCO itself crowds are ten times as large and more
_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no", "")


def is_true(value: Any) -> bool:
    """A flag as files have it: 0, 1, 0.0, true, "0", "1", "true", "false"; null is false.

    Raises:
        ValueError: anything else; its text is the value.
    """
    if value is None:
        return False
    text = str(value).strip().lower().removesuffix(".0")
    if text not in (*_TRUE, *_FALSE):
        raise ValueError(repr(value)[:40])
    return text in _TRUE


def find_crowds(
    objects: Sequence[dict[str, Any]], ignored: Sequence[dict[str, Any]], names: Sequence[str], notes: list[str]
) -> None:
    """Decide on the objects of a file, in place: a class in which all of several are crowds has no crowd.

    A class with one object, a crowd, keeps it unless the whole file has nothing but crowds. Where all RLEs of a file
    are crowds and all polygons are none, the RLEs are single objects unless they are far larger than the polygons.

    Args:
        objects: annotations with `category_id`, an index in `names`, and perhaps `iscrowd`, 0 or 1.
        ignored: annotations that the file wants ignored; they become crowds.
        names: of the classes.
        notes: what was assumed is added here.
    """
    of_class = defaultdict(list)
    for entry in objects:
        of_class[entry["category_id"]].append(entry)
    nothing_else = all(entry.get("iscrowd", 0) for entry in objects)
    single = {
        index: entries
        for index, entries in of_class.items()
        if all(entry.get("iscrowd", 0) for entry in entries) and (len(entries) > 1 or nothing_else)
    }
    for entry in (entry for entries in single.values() for entry in entries):
        entry["iscrowd"] = 0
    if single:
        counts = ", ".join(f"{names[index]} ({len(entries)})" for index, entries in sorted(single.items()))
        notes.append(
            f"All objects of these classes have iscrowd=1, as some annotation tools write: {counts}. They are taken as "
            "single objects. If they are regions of many objects, remove them from the file."
        )
    rles = [entry for entry in objects if isinstance(entry.get("segmentation"), dict) and entry.get("iscrowd", 0)]
    if _are_single(rles, objects):
        for entry in rles:
            entry["iscrowd"] = 0
        notes.append(
            f"All {len(rles)} masks that are RLEs have iscrowd=1, as some tools write for masks with holes or several "
            "parts, and are no larger than other objects. They are taken as single objects."
        )
    for entry in ignored:
        entry["iscrowd"] = 1
        of_class[entry["category_id"]].append(entry)
    if ignored:
        notes.append(f"{len(ignored)} annotations have ignore=1 and are treated like crowds.")
    crowds = {index: sum(entry.get("iscrowd", 0) for entry in entries) for index, entries in of_class.items()}
    if total := sum(crowds.values()):
        parts = ", ".join(
            f"{names[index]} {crowds[index]} of {len(of_class[index])}" for index in sorted(crowds) if crowds[index]
        )
        count = sum(map(len, of_class.values()))
        text = f"{total} of {count} objects are crowds (iscrowd=1), neither learned nor counted: {parts}."
        if total > _MANY * count:
            notes.append(f"{text} If they are single objects, set their iscrowd to 0.")
        else:
            logger.info(text)


def _are_single(crowds: Sequence[dict[str, Any]], objects: Sequence[dict[str, Any]]) -> bool:
    """Whether the RLEs that are crowds are single objects, by who else is a crowd and by their sizes."""
    if len(crowds) < _MIN_RLES:
        return False
    known = {id(entry) for entry in crowds}
    others = [entry for entry in objects if id(entry) not in known]
    if any(entry.get("iscrowd", 0) or isinstance(entry.get("segmentation"), dict) for entry in others):
        return False
    sizes = defaultdict(list)
    for entry in others:
        sizes[entry["category_id"]].append(_box_area(entry))
    medians = {index: np.median(values) for index, values in sizes.items()}
    ratios = [_box_area(entry) / medians[entry["category_id"]] for entry in crowds if medians.get(entry["category_id"])]
    return len(ratios) >= _MIN_RLES and float(np.median(ratios)) <= _LARGE


def _box_area(entry: dict[str, Any]) -> float:
    """Area of a box XYWH, 0 where it is none."""
    try:
        _, _, width, height = (float(value) for value in entry["bbox"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0.0
    return width * height
