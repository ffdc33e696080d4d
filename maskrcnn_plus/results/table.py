"""A table of objects with their measures, as CSV.

Shape shorthand: N objects of one image of H x W pixels, C channels.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maskrcnn_plus.arrays import as_array
from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.windows import ImageWindows
from maskrcnn_plus.masks.measure import rle_areas, rle_centroids, rle_perimeters
from maskrcnn_plus.results.overlay import class_label
from maskrcnn_plus.rle import decode_runs, pixels_in_rows

if TYPE_CHECKING:
    from detectron2.structures import Instances

_LENGTHS = ("x0", "y0", "x1", "y1", "area", "centroid_x", "centroid_y", "perimeter")
_BAND_PIXELS = 1 << 24
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # also in full width, as in CJK text


def _columns(unit: str) -> list[str]:
    return [f"{key}_{unit}{'2' if key == 'area' and unit != 'px' else ''}" for key in _LENGTHS]


ALL_COLUMNS = ["image", "id", "class", "score", *_columns("px"), *_columns("um"), "mean_intensity"]
"""Columns of a table of images in pixels and images in micrometres."""


def object_table(
    instances: Instances,
    name: str,
    image: ImageWindows | None,
    class_names: Sequence[str] | None = None,
    pixel_size: float | None = None,
    channels: int = 3,
) -> bytes:
    """CSV with a header and a row an object.

    Columns: `image` (its name), `id` (value in the label image, from 1), `class`, `score`, the predicted box `x0`,
    `y0`, `x1`, `y1`, and of the mask `area`, `centroid_x`, `centroid_y`, `perimeter` and `mean_intensity`. Names of
    lengths and areas end with their unit: `_px`, or `_um` and `_um2`. The origin is the image's top left corner, the
    centre of the first pixel is at half a pixel. Intensities are the grey values of the file, of colour images the mean
    of the channels. A mask without pixels has neither centroid nor intensity. A name that a spreadsheet would take
    for a formula gets an apostrophe before it.

    Args:
        instances: with `pred_boxes`, `scores`, `pred_classes` and `pred_masks_rle`.
        name: of the image.
        image: in its own grey values, read in bands; None leaves `mean_intensity` empty.
        class_names: name of each class.
        pixel_size: micrometres a pixel; None measures in pixels.
        channels: C of the model; where the image has more, what is said to be alpha is left out.
    """
    rles = instances.pred_masks_rle
    lengths = np.column_stack(
        [as_array(instances.pred_boxes.tensor), rle_areas(rles), rle_centroids(rles), rle_perimeters(rles)]
    )  # [N, 8]
    if pixel_size is not None:
        lengths *= [pixel_size**2 if key == "area" else pixel_size for key in _LENGTHS]
    means = np.full(len(rles), np.nan) if image is None else mean_intensities(rles, image, channels)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["image", "id", "class", "score", *_columns("px" if pixel_size is None else "um"), "mean_intensity"]
    )
    labels = [class_label(class_names, k) for k in instances.pred_classes.tolist()]
    rows = zip(labels, instances.scores.tolist(), lengths.tolist(), means.tolist(), strict=True)
    for index, (label, score, numbers, mean) in enumerate(rows, start=1):
        writer.writerow([as_text(name), index, as_text(label), *map(as_figure, (score, *numbers, mean))])
    return file.getvalue().encode("utf-8", errors="replace")  # a file name may be no text


def mean_intensities(rles: Sequence[dict], image: ImageWindows, channels: int = 3) -> np.ndarray:
    """Mean grey value of an image of C channels under each mask, float64 [N]; NaN where a mask is empty.

    The image is read in bands of rows.
    """
    height, width, count = image.shape
    alpha = () if count == channels else image.get_alpha(ChannelRule(channels))
    shown = [k for k in range(count) if k not in alpha]
    owners, x, top, bottom = decode_runs(rles).columns()
    sums = np.zeros(len(rles))
    rows = max(_BAND_PIXELS // width, 1)
    for y in range(0, height, rows):
        inside = x[(top < y + rows) & (bottom > y)]
        if len(inside) == 0:
            continue
        left, right = int(inside.min()), int(inside.max()) + 1
        band = image.read(left, y, right - left, min(rows, height - y))[:, :, shown].sum(axis=2, dtype=np.float64)
        for pieces, row, column in pixels_in_rows(x, top, bottom, y, y + rows):
            sums += np.bincount(owners[pieces], weights=band[row, column - left], minlength=len(rles))
    with np.errstate(invalid="ignore"):
        return sums / (rle_areas(rles) * len(shown))


def merge_tables(path: str | Path, parts: Sequence[str | Path]) -> None:
    """Write the tables of all images as one.

    Where some are in micrometres and some in pixels, it has the columns of both, each row with one of them filled.

    Args:
        path: the file to write.
        parts: a file of `object_table` an image.
    """

    def rows(part):
        with open(part, encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)

    def header(part):
        with open(part, encoding="utf-8", newline="") as file:
            return next(csv.reader(file), [])

    used = {column for part in parts for column in header(part)}
    if not used:
        used = set(ALL_COLUMNS) - set(_columns("um"))
    columns = [column for column in ALL_COLUMNS if column in used]

    def write(file):
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for part in parts:
            writer.writerows(rows(part))
        text.detach()  # flushed

    write_atomically(path, write, durable=True)


def as_text(cell: str) -> str:
    """A name as a cell that no spreadsheet takes for a formula: an apostrophe stands before such."""
    cell = re.sub(r"[\x00-\x09\x0b-\x1f]", " ", cell)  # quotes keep a line break in its cell
    return f"'{cell}" if cell.lstrip().startswith(_FORMULA) else cell


def as_figure(value: float) -> str:
    """A number as a cell, which is empty for NaN."""
    return "" if np.isnan(value) else f"{value:.8g}"
