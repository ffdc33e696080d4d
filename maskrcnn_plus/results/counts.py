"""How many objects an image has: a row an image, a column a class.

Shape shorthand: N objects of one image of H x W pixels.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maskrcnn_plus.arrays import as_array
from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.masks.measure import rle_areas, rle_union
from maskrcnn_plus.results.overlay import class_label
from maskrcnn_plus.results.table import as_text

if TYPE_CHECKING:
    from detectron2.structures import Instances

_FIRST, _LAST = ["image"], ["total", "covered", "per_mm2"]
_RATES = (" covered", " per_mm2")


def count_table(
    instances: Instances, name: str, class_names: Sequence[str] | None = None, pixel_size: float | None = None
) -> bytes:
    """CSV with a header and the row of an image.

    Columns: `image`, the number of objects of each class, `total`, `covered` (share of the image's pixels that belong
    to an object) and `per_mm2` (objects a square millimetre, empty without `pixel_size`); of several classes also
    `CLASS covered` and `CLASS per_mm2` of each. Where a part of the image was predicted, both are of that part.

    Args:
        instances: with `pred_classes` and `pred_masks_rle`.
        name: of the image.
        class_names: name of each class; those without objects have a 0.
        pixel_size: micrometres a pixel.
    """
    _, _, width, height = getattr(instances, "region", None) or (0, 0, *instances.image_size[::-1])
    classes = as_array(instances.pred_classes)
    number = max(len(class_names or ()), int(classes.max(initial=-1)) + 1)
    counts = np.bincount(classes, minlength=number)
    names = [as_text(class_label(class_names, k)) for k in range(number)]
    names = [f"class {each}" if each in (*_FIRST, *_LAST) else each for each in names]

    def covered(chosen: np.ndarray) -> str:
        rles = [rle for rle, is_chosen in zip(instances.pred_masks_rle, chosen.tolist(), strict=True) if is_chosen]
        area = float(rle_areas([rle_union(rles)])[0]) if rles else 0.0
        return f"{area / (height * width):.6g}"

    def density(count: int) -> str:
        return "" if pixel_size is None else f"{count / (height * width * pixel_size**2 * 1e-6):.6g}"

    row = {
        "image": as_text(name),
        **dict(zip(names, map(str, counts.tolist()), strict=True)),
        "total": str(len(classes)),
        "covered": covered(np.ones(len(classes), dtype=bool)),
        "per_mm2": density(len(classes)),
    }
    if number > 1:
        row |= {f"{each} covered": covered(classes == k) for k, each in enumerate(names)}
        row |= {f"{each} per_mm2": density(counts[k]) for k, each in enumerate(names)}
    file = io.StringIO()
    writer = csv.DictWriter(file, list(row), lineterminator="\n")
    writer.writeheader()
    writer.writerow(row)
    return file.getvalue().encode("utf-8", errors="replace")


def merge_counts(path: str | Path, parts: Sequence[str | Path]) -> None:
    """Write the rows of all images as one table; a class that an image's row does not name has no objects there.

    Its columns are in the order of `count_table`.

    Args:
        path: the file to write.
        parts: a file of `count_table` an image.
    """
    rows = []
    for part in parts:
        with open(part, encoding="utf-8", newline="") as file:
            rows += csv.DictReader(file)
    columns = {column: None for row in rows for column in row if column not in (*_FIRST, *_LAST)}
    rates = [column for column in columns if column.endswith(_RATES) and column.rsplit(" ", 1)[0] in columns]
    classes = [column for column in columns if column not in rates]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*_FIRST, *classes, *_LAST, *rates], restval="0", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode(), durable=True)
