"""Pieces of pages for people to look through: one HTML file that needs no other file and no network."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from maskrcnn_plus.atomic import write_atomically

THUMBNAIL_SIDE = 640
JPEG_QUALITY = 85


def write_page(
    path: str | Path, title: str, parts: Iterable[str], *, details: Mapping[str, str] | None = None, style: str = ""
) -> None:
    """Write a page.

    Args:
        path: the HTML file to write.
        title: heading of the page.
        parts: HTML of the page's sections, in which names of files and classes are escaped.
        details: facts for the head of the page, such as {"Config": ..., "Weights": ...}.
        style: CSS that is added to that of all pages.

    Raises:
        OSError: the file cannot be written.
    """
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style></head><body>",
        f"<header><h1>{html.escape(title)}</h1>{definitions(details or {})}</header><main>",
        *parts,
        "</main></body></html>\n",
    ]
    write_atomically(Path(path), "\n".join(filter(None, lines)).encode("utf-8", errors="replace"))


def definitions(details: Mapping[str, str]) -> str:
    """Names and values in a row."""
    items = (f"<div><dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd></div>" for key, value in details.items())
    return f"<dl>{''.join(items)}</dl>"


def figure_cards(figures: Mapping[str, object]) -> str:
    """A card a figure, by its label in HTML."""
    cards = (f'<div class="card"><b>{value}</b><span>{label}</span></div>' for label, value in figures.items())
    return "\n".join(['<section class="figures">', *cards, "</section>"])


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of texts and numbers, the first column to the left."""
    head = "".join(f"<th>{html.escape(each)}</th>" for each in headings)
    lines = ("".join(f"<td>{html.escape(str(value))}</td>" for value in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(jpeg: bytes, alt: str) -> str:
    """A JPEG file within the page."""
    source = base64.b64encode(jpeg).decode()
    return f'<img loading="lazy" alt="{html.escape(alt)}" src="data:image/jpeg;base64,{source}">'


def number(value: float) -> str:
    """A figure with three digits or more."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def log_bins(values: np.ndarray) -> np.ndarray:
    """Edges of 20 bins of a histogram whose axis is logarithmic."""
    values = values[values > 0]
    low, high = (values.min(), values.max()) if len(values) else (1, 2)
    return np.geomspace(low, max(high, 1.01 * low), 21)


def histogram(values: np.ndarray, caption: str, bins: np.ndarray, label: Callable[[float], str]) -> str:
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


def thumbnail(image: np.ndarray) -> bytes:
    """An image [H, W, 3], uint8 RGB, as a JPEG file of at most `THUMBNAIL_SIDE` pixels a side."""
    scale = THUMBNAIL_SIDE / max(image.shape[:2])
    if scale < 1:
        width, height = (max(round(scale * side), 1) for side in image.shape[1::-1])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    # full colour resolution: outlines are 1 px wide
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()


STYLE = """
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
.table{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:3px 18px 3px 0;text-align:right;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:400}
th:first-child,td:first-child{text-align:left}
.facts,.classes{display:flex;flex-wrap:wrap;gap:4px 18px;margin:2px 0 12px;font-variant-numeric:tabular-nums}
.chip::before{content:"";display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px;
background:var(--dot)}
.pair:empty{display:none}
.pair img{display:block;width:100%;border-radius:8px}
@media print{:root{color-scheme:light;--page:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#ccc;--bar:#3d7be0;
--bad:#b3261e;--badcard:#fff}body{font-size:11px}.pair{grid-template-columns:1fr 1fr}.figures{
grid-template-columns:repeat(6,1fr)}.charts{grid-template-columns:1fr 1fr}}
"""
