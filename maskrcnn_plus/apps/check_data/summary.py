"""The figures of a diagnosis as tables, for the terminal and for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from maskrcnn_plus.apps.check_data.diagnosis import Diagnosis
from maskrcnn_plus.data.formats.files import WHOLE
from maskrcnn_plus.data.statistics import PixelStatistics, Statistics

Table = tuple[list[str], list[list[str]]]
"""Headings and rows."""

_SIZES = 3  # sizes of images that are named


def split_table(diagnosis: Diagnosis) -> Table:
    """Images and objects of each split."""
    headings = ["split", "images", "without objects", "objects", "crowds", "objects an image (median, most)"]
    rows = []
    for split in diagnosis.splits:
        of = diagnosis.statistics[split]
        density = _median_and_most(of.objects_per_image)
        name = "(no splits)" if split == WHOLE else split
        counts = (of.num_images, of.num_negatives, of.num_objects, of.num_crowds)
        rows.append([name, *(f"{count:,}" for count in counts), density])
    return headings, rows


def class_table(diagnosis: Diagnosis) -> Table:
    """Objects and images of each class, the most frequent first."""
    total = diagnosis.statistics[""]
    headings = ["class", "objects", "images", "median area (px)"]
    splits = list(diagnosis.splits) if len(diagnosis.splits) > 1 else []
    rows = []
    names = sorted(total.class_counts, key=lambda name: -total.class_counts[name])
    for name in names:
        areas = total.areas[total.classes == total.class_names.index(name)]
        median = f"{np.median(areas):,.0f}" if len(areas) else "-"
        each = [f"{diagnosis.statistics[split].class_counts[name]:,}" for split in splits]
        rows.append([name, f"{total.class_counts[name]:,}", f"{total.images_per_class[name]:,}", median, *each])
    return [*headings, *(f"objects of {split}" for split in splits)], rows


def facts(diagnosis: Diagnosis) -> dict[str, str]:
    """What images and objects are like, by name."""
    total = diagnosis.statistics[""]
    if not total.num_images:
        return {}
    said = {"image sizes (width x height)": _image_sizes(total), **_pixel_facts(total.pixels)}
    if not total.num_objects:
        return said
    ratio = total.box_sizes.max(axis=1) / np.maximum(total.box_sizes.min(axis=1), 1)
    overlapping = float(np.mean(total.box_overlap > 0.5))
    return {
        **said,
        "diameter of objects (5 %, median, 95 %)": _percentiles(total.diameters, "{:,.0f}") + " px",
        "longer by shorter side of boxes": _percentiles(ratio, "{:.1f}"),
        "share of its box that a mask fills": _percentiles(total.fill, "{:.2f}"),
        "boxes that overlap with another by IoU 0.5": f"{overlapping:.1%}, at most {total.box_overlap.max():.2f}",
    }


def _pixel_facts(pixels: PixelStatistics | None) -> dict[str, str]:
    if pixels is None or not pixels.num_images:
        return {}
    low, high = np.median(pixels.intensity, axis=0)
    values = f"{low:,.3g} to {high:,.3g}" if high < 10 else f"{low:,.0f} to {high:,.0f}"
    said = {
        "channels": _counted({f"{count}": number for count, number in pixels.channels.items()}),
        "depth": _counted(dict(pixels.dtypes)),
        "grey values (1 % to 99.8 %, median of images)": values,
    }
    if not np.isnan(pixels.dark_background):
        said["objects brighter than the background"] = f"in {pixels.dark_background:.0%} of the images"
    return said


def _image_sizes(total: Statistics) -> str:
    """The most frequent sizes, or the range of many."""
    sizes = Counter((width, height) for height, width in total.image_sizes.tolist())
    if len(sizes) <= _SIZES:
        return _counted({f"{width} x {height}": number for (width, height), number in sizes.items()})
    (low_h, low_w), (high_h, high_w) = total.image_sizes.min(axis=0), total.image_sizes.max(axis=0)
    middle_h, middle_w = np.median(total.image_sizes, axis=0)
    return f"{low_w} x {low_h} to {high_w} x {high_h}, median {middle_w:.0f} x {middle_h:.0f}"


def _counted(counts: dict[str, int]) -> str:
    """Values with their numbers of images, which are left out where there is one value."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ordered[0][0] if len(ordered) == 1 else ", ".join(f"{name} ({number:,} images)" for name, number in ordered)


def _percentiles(values: np.ndarray, form: str) -> str:
    return ", ".join(form.format(value) for value in np.percentile(values, (5, 50, 95)))


def _median_and_most(counts: Sequence[int] | np.ndarray) -> str:
    return f"{np.median(counts):,.0f}, {np.max(counts):,}" if len(counts) else "-"
