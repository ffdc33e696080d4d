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


def count_table(
    instances: Instances, name: str, class_names: Sequence[str] | None = None, pixel_size: float | None = None
) -> bytes:
    """CSV with a header and the row of an image.

    Columns: `image`, the number of objects of each class, `total`, `covered` (share of the image's pixels that belong
    to an object) and `per_mm2` (objects a square millimetre, empty without `pixel_size`).

    Args:
        instances: with `pred_classes` and `pred_masks_rle`.
        name: of the image.
        class_names: name of each class; those without objects have a 0.
        pixel_size: micrometres a pixel.
    """
    height, width = instances.image_size
    classes = as_array(instances.pred_classes)
    number = max(len(class_names or ()), int(classes.max(initial=-1)) + 1)
    counts = np.bincount(classes, minlength=number)
    covered = float(rle_areas([rle_union(list(instances.pred_masks_rle))])[0]) if len(classes) else 0.0
    density = "" if pixel_size is None else f"{len(classes) / (height * width * pixel_size**2 * 1e-6):.6g}"
    row = {
        "image": as_text(name),
        **{as_text(class_label(class_names, k)): str(count) for k, count in enumerate(counts.tolist())},
        "total": str(len(classes)),
        "covered": f"{covered / (height * width):.6g}",
        "per_mm2": density,
    }
    file = io.StringIO()
    writer = csv.DictWriter(file, list(row), lineterminator="\n")
    writer.writeheader()
    writer.writerow(row)
    return file.getvalue().encode("utf-8", errors="replace")


def merge_counts(path: str | Path, parts: Sequence[str | Path]) -> None:
    """Write the rows of all images as one table; a class that an image's row does not name has no objects there.

    Args:
        path: the file to write.
        parts: a file of `count_table` an image.
    """
    rows = []
    for part in parts:
        with open(part, encoding="utf-8", newline="") as file:
            rows += csv.DictReader(file)
    classes = {column: None for row in rows for column in row if column not in (*_FIRST, *_LAST)}
    text = io.StringIO()
    writer = csv.DictWriter(text, [*_FIRST, *classes, *_LAST], restval="0", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode(), durable=True)
