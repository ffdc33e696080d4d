"""A report of predictions for people to look through: one HTML file that needs no other file and no network."""

import base64
import html
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from detectron2.structures import Instances

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.inference.predictions import known_pixel_size
from maskrcnn_plus.masks.measure import rle_areas
from maskrcnn_plus.masks.rle_masks import instance_masks
from maskrcnn_plus.results.overlay import class_label, class_shades

MAX_PICTURES = 200
"""Images shown in a report; the figures cover all."""

THUMBNAIL_SIDE = 640
JPEG_QUALITY = 85


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
    """

    name: str
    height: int
    width: int
    scores: list[float]
    areas: list[int]
    classes: list[int]
    pixel_size: float | None = None
    pictures: tuple[bytes, bytes] | None = None


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
    pictures = None if image is None or overlay is None else (_thumbnail(image), _thumbnail(overlay))
    scores, classes = instances.scores.tolist(), instances.pred_classes.tolist()
    pixel_size = known_pixel_size(instances, pixel_size)
    return ReportEntry(name, height, width, scores, areas, classes, pixel_size, pictures)


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
    scores = np.array([score for entry in entries for score in entry.scores])
    unit, areas = _areas(entries)
    totals = Counter(k for entry in entries for k in entry.classes)
    several = len(class_names) > 1 if class_names else len(totals) > 1
    style = _STYLE + "".join(f".c{k}{{--dot:{class_shades(k)[0]}}}" for k in sorted(totals))
    figures = {
        "images": len(entries),
        "objects": len(scores),
        "objects per image": f"{len(scores) / len(entries):.1f}" if entries else "-",
        "median score": f"{np.median(scores):.2f}" if len(scores) else "-",
        f"median area ({unit})": _number(np.median(areas)) if len(areas) else "-",
    }
    if failures:
        figures["files failed"] = len(failures)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{style}</style></head><body>",
        f"<header><h1>{html.escape(title)}</h1>{_definitions(details or {})}</header><main>",
        '<section class="figures">',
        *(f'<div class="card"><b>{value}</b><span>{label}</span></div>' for label, value in figures.items()),
        "</section>",
        _failure_list(failures),
        '<section class="charts">',
        _histogram(scores, "Scores", np.linspace(min(0.5, scores.min(initial=1)), 1, 21), "{:.2f}".format),
        _histogram(areas, f"Object areas ({unit}, logarithmic)", _log_bins(areas), _number),
        "</section>",
        f'<p class="classes">{_class_counts(totals, class_names)}</p>' if several else "",
        *(_image_card(entry, k < MAX_PICTURES, several, class_names) for k, entry in enumerate(entries)),
    ]
    if len(entries) > MAX_PICTURES:
        hidden = len(entries) - MAX_PICTURES
        parts.append(f'<p class="note">The {hidden} images after the first {MAX_PICTURES} are without pictures.</p>')
    parts.append("</main></body></html>\n")
    write_atomically(Path(path), "\n".join(filter(None, parts)).encode("utf-8", errors="replace"))


def _definitions(details: dict[str, str]) -> str:
    items = (f"<div><dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd></div>" for key, value in details.items())
    return f"<dl>{''.join(items)}</dl>"


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
    chips = _class_counts(Counter(entry.classes), class_names) if several else ""
    figures = ""
    if with_pictures and entry.pictures:
        sources = (base64.b64encode(picture).decode() for picture in entry.pictures)
        figures = "".join(
            f'<figure><img loading="lazy" alt="{alt}" src="data:image/jpeg;base64,{source}"></figure>'
            for alt, source in zip(("Image", "Predictions"), sources, strict=True)
        )
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


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _log_bins(areas: np.ndarray) -> np.ndarray:
    areas = areas[areas > 0]
    low, high = (areas.min(), areas.max()) if len(areas) else (1, 2)
    return np.geomspace(low, max(high, 1.01 * low), 21)


def _histogram(values: np.ndarray, caption: str, bins: np.ndarray, label: Callable[[float], str]) -> str:
    """Bars of an inline SVG, 420 x 150 units, with the ends and the middle of the axis labelled."""
    counts, _ = np.histogram(np.clip(values, bins[0], bins[-1]), bins)
    peak, step, base = max(counts.max(), 1), 420 / len(counts), 118
    bars = "".join(
        f'<rect x="{k * step + 1:.1f}" y="{base - 104 * n / peak:.1f}" width="{step - 2:.1f}" '
        f'height="{104 * n / peak:.1f}" rx="2"><title>{label(bins[k])} to {label(bins[k + 1])}: {n}'
        "</title></rect>"
        for k, n in enumerate(counts)
        if n
    )
    ticks = "".join(
        f'<text x="{x}" y="138" text-anchor="{anchor}">{label(bins[k])}</text>'
        for x, anchor, k in ((1, "start", 0), (210, "middle", len(counts) // 2), (419, "end", -1))
    )
    return (
        f'<figure class="card"><figcaption>{caption}<small>highest bar: {counts.max()}</small></figcaption>'
        f'<svg viewBox="0 0 420 144" role="img" aria-label="Histogram: {caption}">{bars}'
        f'<line x1="0" x2="420" y1="{base}" y2="{base}"/>{ticks}</svg></figure>'
    )


def _thumbnail(image: np.ndarray) -> bytes:
    scale = THUMBNAIL_SIDE / max(image.shape[:2])
    if scale < 1:
        width, height = (max(round(scale * side), 1) for side in image.shape[1::-1])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    # full colour resolution: outlines are 1 px wide
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()


_STYLE = """
:root{color-scheme:light dark;--page:#f4f5f7;--card:#fff;--ink:#1b1f27;--soft:#626a78;--line:#e1e4ea;--bar:#3d7be0;
--bad:#b3261e;--badcard:#fdf1f0}
@media(prefers-color-scheme:dark){:root{--page:#13161b;--card:#1c2027;--ink:#e8eaee;--soft:#9aa3b2;--line:#2d333d;
--bar:#6ea0f5;--bad:#ff8a80;--badcard:#2a1c1d}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-print-color-adjust:exact;print-color-adjust:exact}
header,main{max-width:1240px;margin:0 auto;padding:0 24px}
header{padding-top:32px}
main{padding-bottom:48px}
h1{font-size:27px;letter-spacing:-.02em;margin:0 0 10px}
h2{font-size:16px;margin:0 0 6px}
h3{font-size:16px;margin:0;overflow-wrap:anywhere}
dl{display:flex;flex-wrap:wrap;gap:4px 28px;margin:0 0 22px}
dl div{display:flex;gap:8px;min-width:0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px 18px}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:14px;margin-bottom:14px}
.figures b{display:block;font-size:25px;line-height:1.25;font-variant-numeric:tabular-nums}
.figures span,.facts,small,.note{color:var(--soft)}
.failures{background:var(--badcard);border:1px solid var(--bad);border-radius:12px;padding:14px 18px;margin-bottom:14px}
.failures h2{color:var(--bad)}
.failures ul{margin:0;padding-left:20px;overflow-wrap:anywhere}
.charts,.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:14px}
.charts{margin-bottom:14px}
figure{margin:0}
figcaption{display:flex;justify-content:space-between;gap:12px;font-weight:600;margin-bottom:6px}
small{font-weight:400;font-size:13px}
svg{display:block;width:100%}
svg rect{fill:var(--bar)}
svg line{stroke:var(--line)}
svg text{fill:var(--soft);font-size:12px}
article{margin-top:14px;break-inside:avoid}
.facts,.classes{display:flex;flex-wrap:wrap;gap:4px 18px;margin:2px 0 12px;font-variant-numeric:tabular-nums}
.chip::before{content:"";display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px;
background:var(--dot)}
.pair:empty{display:none}
.pair img{display:block;width:100%;border-radius:8px}
@media print{:root{color-scheme:light;--page:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#ccc;--bar:#3d7be0;
--bad:#b3261e;--badcard:#fff}body{font-size:11px}.pair{grid-template-columns:1fr 1fr}.figures{
grid-template-columns:repeat(6,1fr)}.charts{grid-template-columns:1fr 1fr}}
"""
