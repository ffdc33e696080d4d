"""A report of predictions for people to look through."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maskrcnn_plus.masks.measure import rle_areas
from maskrcnn_plus.masks.rle_masks import instance_masks
from maskrcnn_plus.results.facts import known_pixel_size
from maskrcnn_plus.results.overlay import class_label, class_shades
from maskrcnn_plus.results.page import (
    definitions,
    figure_cards,
    histogram,
    log_bins,
    number,
    picture,
    thumbnail,
    write_page,
)

if TYPE_CHECKING:
    from detectron2.structures import Instances

MAX_PICTURES = 200
"""Images shown in a report; the figures cover all."""


@dataclass
class ReportEntry:
    """What the report says of one image.

    Attributes:
        name: file name as it is to be shown.
        height, width: of the image in pixels.
        scores: one a predicted object.
        areas: mask area of each object in pixels.
        classes: class index of each object.
        pixel_size: micrometres a pixel, where it is known.
        pictures: JPEG files of the image and of its overlay, or None for an image without pictures.
        object_diameter: see `Predictions`.
    """

    name: str
    height: int
    width: int
    scores: list[float]
    areas: list[int]
    classes: list[int]
    pixel_size: float | None = None
    pictures: tuple[bytes, bytes] | None = None
    object_diameter: float | None = None


def report_entry(
    name: str,
    instances: Instances,
    image: np.ndarray | None = None,
    overlay: np.ndarray | None = None,
    pixel_size: float | None = None,
) -> ReportEntry:
    """Sum up the predictions of one image; image and overlay [H, W, 3] uint8 RGB are kept as thumbnails only."""
    height, width = instances.image_size
    areas = rle_areas(instance_masks(instances)).tolist()
    pictures = None if image is None or overlay is None else (thumbnail(image), thumbnail(overlay))
    scores, classes = instances.scores.tolist(), instances.pred_classes.tolist()
    pixel_size = known_pixel_size(instances, pixel_size)
    diameter = getattr(instances, "object_diameter", None)
    return ReportEntry(name, height, width, scores, areas, classes, pixel_size, pictures, diameter)


def write_report(
    path: str | Path,
    entries: Sequence[ReportEntry],
    title: str,
    *,
    details: dict[str, str] | None = None,
    failures: Sequence[tuple[str, str]] = (),
    class_names: Sequence[str] | None = None,
) -> None:
    """Write `report.html`: figures over all images, failed files, then each image beside its overlay.

    Args:
        path: the HTML file to write.
        entries: one an image, in the order to show them; the first 200 are shown with pictures.
        title: heading of the page.
        details: facts for the head of the page, such as {"Config": ..., "Weights": ...}.
        failures: (file name, reason) of each file that could not be predicted.
        class_names: name of each class.

    Raises:
        OSError: the file cannot be written.
    """
    section = ReportSection("", entries, failures=failures, class_names=class_names)
    write_page(path, title, _parts(section), details=details, style=_style(entries))


@dataclass
class ReportSection:
    """A part of a page with a heading of its own, arguments as of `write_report`."""

    heading: str
    entries: Sequence[ReportEntry]
    details: Mapping[str, str] = field(default_factory=dict)
    failures: Sequence[tuple[str, str]] = ()
    class_names: Sequence[str] | None = None


def write_sections(path: str | Path, title: str, sections: Sequence[ReportSection], note: str = "") -> None:
    """Write the predictions of several models into one page.

    Args:
        path: the HTML file to write.
        title: heading of the page.
        sections: the models' parts in their order.
        note: a sentence at the top; "" for none.

    Raises:
        OSError: the file cannot be written.
    """
    parts = [f'<p class="note">{html.escape(note)}</p>' if note else ""]
    for section in sections:
        parts += [f"<h2>{html.escape(section.heading)}</h2>", definitions(section.details), *_parts(section)]
    write_page(path, title, parts, style=_style([entry for section in sections for entry in section.entries]))


def _style(entries: Sequence[ReportEntry]) -> str:
    """CSS of the colours of the classes."""
    classes = sorted({k for entry in entries for k in entry.classes})
    return "".join(f".c{k}{{--dot:{class_shades(k)[0]}}}" for k in classes)


def _parts(section: ReportSection) -> list[str]:
    """HTML of figures, failed files and images."""
    entries, failures, class_names = section.entries, section.failures, section.class_names
    scores = np.array([score for entry in entries for score in entry.scores])
    unit, areas = _areas(entries)
    totals = Counter(k for entry in entries for k in entry.classes)
    several = len(class_names) > 1 if class_names else len(totals) > 1
    figures = {
        "images": len(entries),
        "objects": len(scores),
        "objects per image": f"{len(scores) / len(entries):.1f}" if entries else "-",
        "median score": f"{np.median(scores):.2f}" if len(scores) else "-",
        f"median area ({unit})": number(np.median(areas)) if len(areas) else "-",
    }
    if failures:
        figures["files failed"] = len(failures)
    parts = [
        figure_cards(figures),
        _failure_list(failures),
        '<section class="charts">',
        histogram(scores, "Scores", np.linspace(min(0.5, scores.min(initial=1)), 1, 21), "{:.2f}".format),
        histogram(areas, f"Object areas ({unit}, logarithmic)", log_bins(areas), number),
        "</section>",
        f'<p class="classes">{_class_counts(totals, class_names)}</p>' if several else "",
        *(_image_card(entry, k < MAX_PICTURES, several, class_names) for k, entry in enumerate(entries)),
    ]
    if len(entries) > MAX_PICTURES:
        hidden = len(entries) - MAX_PICTURES
        parts.append(f'<p class="note">The {hidden} images after the first {MAX_PICTURES} are without pictures.</p>')
    return parts


def _failure_list(failures: Sequence[tuple[str, str]]) -> str:
    if not failures:
        return ""
    rows = (f"<li><b>{html.escape(name)}</b> {html.escape(reason)}</li>" for name, reason in failures)
    return f'<section class="failures"><h2>Not predicted: {len(failures)}</h2><ul>{"".join(rows)}</ul></section>'


def _image_card(entry: ReportEntry, with_pictures: bool, several: bool, class_names: Sequence[str] | None) -> str:
    count = len(entry.scores)
    facts = [f"{entry.width} &times; {entry.height} px", f"{count} object{'' if count == 1 else 's'}"]
    if count:
        facts.append(f"scores {min(entry.scores):.2f} to {max(entry.scores):.2f}")
    if count and entry.object_diameter:
        facts.append(f"scaled for a diameter of {entry.object_diameter:.0f} px")
    chips = _class_counts(Counter(entry.classes), class_names) if several else ""
    figures = ""
    if with_pictures and entry.pictures:
        pairs = zip(entry.pictures, ("Image", "Predictions"), strict=True)
        figures = "".join(f"<figure>{picture(jpeg, alt)}</figure>" for jpeg, alt in pairs)
    return (
        f'<article class="card"><h3>{html.escape(entry.name)}</h3>'
        f'<p class="facts">{"".join(f"<span>{fact}</span>" for fact in facts)}{chips}</p>'
        f'<div class="pair">{figures}</div></article>'
    )


def _class_counts(counts: Counter, class_names: Sequence[str] | None) -> str:
    return "".join(
        f'<span class="chip c{k}">{html.escape(class_label(class_names, k))} {counts[k]}</span>' for k in sorted(counts)
    )


def _areas(entries: Sequence[ReportEntry]) -> tuple[str, np.ndarray]:
    """Unit and areas of all objects: square micrometres, as in a table, where the pixels of all images have a size."""
    if entries and all(entry.pixel_size for entry in entries):
        return "&micro;m&sup2;", np.array([area * entry.pixel_size**2 for entry in entries for area in entry.areas])
    return "px", np.array([area for entry in entries for area in entry.areas])
