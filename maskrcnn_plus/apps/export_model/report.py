"""What an export did, as `export_report.json`, as a page, and as a table for a terminal."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maskrcnn_plus.apps.export_model.gate import SAME, Change, Comparison
from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.results.page import figure_cards, table, write_page

__all__ = ["JSON_NAME", "PAGE_NAME", "changes_table", "write_reports"]

JSON_NAME, PAGE_NAME = "export_report.json", "export_report.html"
_MOST = 200  # changed objects in the page; the JSON file has all
_HEADINGS = ("image", "class", "what", "mask IoU", "score", "exported")


def write_reports(folder: Path, facts: Mapping[str, Any], comparison: Comparison | None) -> None:
    """Write both files.

    Args:
        folder: of the export.
        facts: plain data: "precision", "passed", "gate" (a sentence), "attempts", "bytes", "latency_ms", "notes", ...
        comparison: of the gate; None where none was run.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {**facts, "comparison": None if comparison is None else asdict(comparison)}
    text = json.dumps(_finite(content), indent=1, allow_nan=False, ensure_ascii=False)
    write_atomically(folder / JSON_NAME, f"{text}\n".encode())
    details = {key: str(facts[key]) for key in ("weights", "format", "precision", "date") if key in facts}
    write_page(folder / PAGE_NAME, "Export", _parts(facts, comparison), details=details)


def changes_table(comparison: Comparison, most: int = 20) -> str:
    """The figures and the objects that changed most, for a terminal."""
    lines = [f"{'':<10}{'original':>10}{'exported':>10}{'change':>10}"]
    for key, before in comparison.figures["original"].items():
        after = comparison.figures["exported"][key]
        lines.append(f"{key:<10}{before:>10.4f}{after:>10.4f}{after - before:>+10.4f}")
    changes = (
        f"; masks of {100 * comparison.same:.1f} % with an IoU of {SAME} or more, lowest {comparison.lowest_iou:.3f}; "
        f"scores change by up to {comparison.largest_score_change:.4f}"
    )
    lines.append(
        f"{comparison.paired} objects in both, {comparison.lost} lost, {comparison.new} new"
        f"{changes if comparison.paired else ''}"
    )
    rows = [_HEADINGS, *(_row(each) for each in comparison.changes[:most])]
    widths = [max(len(str(row[k])) for row in rows) for k in range(len(_HEADINGS))]
    if len(rows) > 1:
        lines += ["  ".join(f"{value!s:<{w}}" for value, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(comparison.changes) > most:
        lines.append(f"and {len(comparison.changes) - most} more, see {JSON_NAME}")
    return "\n".join(lines)


def _parts(facts: Mapping[str, Any], comparison: Comparison | None) -> list[str]:
    verdict = {True: "passed", False: "failed", None: "no gate"}[facts.get("passed")]
    cards: dict[str, object] = {"gate": verdict}
    if comparison is not None:
        for key in ("mask AP", "box AP"):
            before, after = (comparison.figures[side][key] for side in ("original", "exported"))
            cards[f"{key}, {100 * before:.1f} before"] = f"{100 * after:.1f}"
        cards["objects in both"] = comparison.paired
        cards["lost / new"] = f"{comparison.lost} / {comparison.new}"
    for key, unit, factor in (("bytes", "MB", 1e-6), ("latency_ms", "ms an image", 1)):
        if sizes := facts.get(key):
            cards[f"{unit}, {sizes['original'] * factor:.0f} before"] = f"{sizes['exported'] * factor:.0f}"
    parts = [figure_cards(cards), f'<p class="note">{html.escape(facts["gate"])}</p>']
    if facts.get("attempts"):
        rows = [(each["what"], _number(each["drop"]), each["result"]) for each in facts["attempts"]]
        parts.append(f"<h2>Attempts</h2>{table(('in 8 bits', 'drop of AP', 'result'), rows)}")
    if comparison is not None:
        figures = comparison.figures["original"]
        rows = [
            (key, f"{value:.4f}", f"{after:.4f}", f"{after - value:+.4f}")
            for key, value in figures.items()
            for after in [comparison.figures["exported"][key]]
        ]
        parts.append(f"<h2>Average precision</h2>{table(('', 'original', 'exported', 'change'), rows)}")
        summary = (
            f"At a score of {comparison.threshold:g}: {100 * comparison.same:.1f} % of the masks have an IoU of {SAME} "
            f"or more with the original's, the lowest has {comparison.lowest_iou:.3f}; scores change by "
            f"{comparison.mean_score_change:.4f} in the mean and {comparison.largest_score_change:.4f} at most."
        )
        parts.append(f'<h2>Objects that changed</h2><p class="note">{html.escape(summary)}</p>')
        parts.append(table(_HEADINGS, [_row(each) for each in comparison.changes[:_MOST]]))
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in facts.get("notes", ()))
    return [*parts, f"<h2>Notes</h2><ul>{notes}</ul>" if notes else ""]


def _row(change: Change) -> tuple[str, ...]:
    numbers = (change.iou, change.score, change.exported_score)
    return (change.image, change.class_name, change.kind, *map(_number, numbers))


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4f}"


def _finite(value: Any) -> Any:
    """Plain data with None in the place of NaN, which JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
