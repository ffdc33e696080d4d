"""Classes cell_1, cell_2, ... that are one class, of which somebody numbered the objects."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from maskrcnn_plus.data.formats.annotated import Annotated

_NUMBERED = re.compile(r"(.*[^\W\d_])[\s_.:#-]*\(?(\d+)\)?", re.DOTALL)
_MIN_CLASSES = 3


def merge_numbered(data: Annotated, merge: bool) -> None:
    """Join classes that differ in a number at their end, or say that it looks as if they should be, in place.

    They look so where three or more have a name in common and no image has two objects of one of them.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(data.class_names):
        match = _NUMBERED.fullmatch(name.strip())
        groups[match.group(1) if match else name].append(index)
    groups = {base: indices for base, indices in groups.items() if len(indices) > 1}
    if not groups:
        return
    if merge:
        _join(data, groups)
        return
    most: Counter[int] = Counter()
    for record in (record for records in data.splits.values() for record in records):
        for index, count in Counter(entry["category_id"] for entry in record["annotations"]).items():
            most[index] = max(most[index], count)
    for base, indices in groups.items():
        if len(indices) >= _MIN_CLASSES and all(most[index] <= 1 for index in indices):
            names = ", ".join(data.class_names[index] for index in indices[:_MIN_CLASSES])
            data.notes.append(
                f"{len(indices)} classes are named {base!r} with a number ({names}, ...), and no image has two objects "
                "of one of them: if the numbers tell objects apart and not classes, give --merge-numbered."
            )


def _join(data: Annotated, groups: dict[str, list[int]]) -> None:
    base_of = {index: base for base, indices in groups.items() for index in indices}
    old = data.class_names
    names = [base_of.get(index, name) for index, name in enumerate(old)]
    data.class_names = list(dict.fromkeys(names))
    for entry in (each for records in data.splits.values() for record in records for each in record["annotations"]):
        entry["category_id"] = data.class_names.index(names[entry["category_id"]])
    for base, indices in groups.items():
        data.notes.append(f"{len(indices)} numbered classes are the class {base!r}: {old[indices[0]]}, ...")
