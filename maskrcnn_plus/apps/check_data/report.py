"""A diagnosis as a page: figures, findings, and pictures of what is worth a look."""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np

from maskrcnn_plus.apps.check_data.diagnosis import HEADINGS, NOTE, PROBLEM, WARNING, Diagnosis, Finding
from maskrcnn_plus.apps.check_data.pictures import choose_samples, draw_samples, draw_suspicious
from maskrcnn_plus.apps.check_data.summary import class_table, facts, split_table
from maskrcnn_plus.apps.check_data.suspicious import choose_shown
from maskrcnn_plus.data.findings import annotation_name
from maskrcnn_plus.results.page import (
    definitions,
    figure_cards,
    histogram,
    log_bins,
    number,
    picture,
    table,
    write_page,
)

_SAMPLES = 6
_LINES = 500  # of a kind

_STYLE = """
section.card{margin-bottom:14px}
details{margin:4px 0}
summary{cursor:pointer;overflow-wrap:anywhere}
.problem{border-color:var(--bad);background:var(--badcard)}
.card ul{margin:4px 0 8px;padding-left:20px;overflow-wrap:anywhere}
.card dl{flex-direction:column;margin:0}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,260px),1fr));gap:14px}
.gallery img{display:block;width:100%;border-radius:8px}
.gallery figcaption{display:block;font-weight:400;font-size:13px;overflow-wrap:anywhere;margin-top:6px}
"""


def write_data_report(path: Path, diagnosis: Diagnosis) -> None:
    """Write the page, which needs no other file.

    Raises:
        OSError: the file cannot be written.
        ImageReadError: an image that could be read before cannot any more.
    """
    total = diagnosis.statistics[""]
    figures = {
        "images": f"{total.num_images:,}",
        "objects": f"{total.num_objects:,}",
        "classes": sum(count > 0 for count in total.class_counts.values()),
        "problems": f"{diagnosis.num_problems:,}",
        "unusual annotations": f"{len(diagnosis.suspicious):,}",
    }
    parts = [figure_cards(figures)]
    for severity in (PROBLEM, WARNING):
        parts.append(_findings(diagnosis, severity))
    parts.append(_card("Is it enough?", _list(diagnosis.advice)) if diagnosis.advice else "")
    tables = table(*split_table(diagnosis))
    if total.num_objects:
        tables += "<br>" + table(*class_table(diagnosis))
    parts.append(_card("Images and objects", tables))
    parts.append(_card("What they are like", definitions(facts(diagnosis))))
    parts.append(_charts(diagnosis))
    parts.append(_suspicious(diagnosis))
    parts.append(_samples(diagnosis))
    parts.append(_findings(diagnosis, NOTE))
    details = {"Folder": str(diagnosis.path), "Format": diagnosis.format}
    write_page(path, "Data check", parts, details=details, style=_STYLE)


def _card(heading: str, content: str, kind: str = "") -> str:
    return f'<section class="card {kind}"><h2>{html.escape(heading)}</h2>{content}</section>'


def _list(lines: list[str]) -> str:
    shown = "".join(f"<li>{html.escape(line)}</li>" for line in lines[:_LINES])
    more = f"<li>... and {len(lines) - _LINES} more</li>" if len(lines) > _LINES else ""
    return f"<ul>{shown}{more}</ul>"


def _findings(diagnosis: Diagnosis, severity: str) -> str:
    found = [each for each in diagnosis.findings if each.severity == severity]
    return _card(HEADINGS[severity], "".join(map(_finding, found)), severity) if found else ""


def _finding(finding: Finding) -> str:
    if not finding.lines:
        return f"<p>{html.escape(finding.kind)}</p>"
    remedy = f"<p>{html.escape(finding.remedy)}</p>" if finding.remedy else ""
    summary = f"<summary><b>{len(finding.lines):,} &times;</b> {html.escape(finding.kind)}</summary>"
    return f"<details>{summary}{remedy}{_list(finding.lines)}</details>"


def _charts(diagnosis: Diagnosis) -> str:
    total = diagnosis.statistics[""]
    if not total.num_objects:
        return ""
    ratio = np.log2(np.maximum(total.box_sizes[:, 0], 1) / np.maximum(total.box_sizes[:, 1], 1))
    density = total.objects_per_image
    charts = [
        histogram(total.diameters, "Diameters of objects (px, logarithmic)", log_bins(total.diameters), number),
        histogram(density, "Objects an image", np.linspace(0, max(density.max(), 1), 21), number),
        histogram(ratio, "Width by height of boxes", np.linspace(-4, 4, 21), lambda value: number(2.0**value)),
        histogram(total.box_overlap, "Highest IoU with another box of the class", np.linspace(0, 1, 21), number),
    ]
    return f'<section class="charts">{"".join(charts)}</section>'


def _suspicious(diagnosis: Diagnosis) -> str:
    records, shown = diagnosis.records, choose_shown(diagnosis.suspicious)
    if not shown:
        return ""
    figures = []
    for each, jpeg in zip(shown, draw_suspicious(records, shown), strict=True):
        record = records[each.image]
        name = f"{diagnosis.name(record)}, {annotation_name(each.number, record['annotations'][each.number])}"
        reasons = html.escape("; ".join(each.reasons))
        figures.append(
            f"<figure>{picture(jpeg, name)}<figcaption><b>{reasons}</b><br>{html.escape(name)}</figcaption></figure>"
        )
    return _card(
        f"The {len(shown)} most unusual annotations of {len(diagnosis.suspicious)}",
        f'<div class="gallery">{"".join(figures)}</div>',
    )


def _samples(diagnosis: Diagnosis) -> str:
    records = diagnosis.records
    chosen = [records[index] for index in choose_samples(records, _SAMPLES)]
    if not chosen:
        return ""
    figures = [
        f"<figure>{picture(jpeg, record['file_name'])}<figcaption>{html.escape(diagnosis.name(record))}: "
        f"{sum(not each.get('iscrowd', 0) for each in record['annotations'])} objects</figcaption></figure>"
        for record, jpeg in zip(chosen, draw_samples(chosen, diagnosis.class_names), strict=True)
    ]
    return _card("Do the outlines fit?", f'<div class="gallery">{"".join(figures)}</div>')
