"""A diagnosis as text for the terminal."""

from __future__ import annotations

from tabulate import tabulate

from maskrcnn_plus.apps.check_data.diagnosis import HEADINGS, Diagnosis, Finding
from maskrcnn_plus.apps.check_data.summary import class_table, facts, split_table
from maskrcnn_plus.apps.check_data.suspicious import choose_shown
from maskrcnn_plus.data.findings import annotation_name

_KINDS, _LINES = 20, 5  # of a severity, of a kind
_CLASSES = 30


def describe(diagnosis: Diagnosis) -> str:
    """All that is known of a data set, of long lists the beginning."""
    parts = [f"{diagnosis.path}: {diagnosis.format}", _table(*split_table(diagnosis))]
    if diagnosis.statistics[""].num_objects:
        headings, rows = class_table(diagnosis)
        more = f"\n... and {len(rows) - _CLASSES} more classes" if len(rows) > _CLASSES else ""
        parts.append(_table(headings, rows[:_CLASSES]) + more)
    parts.append(tabulate(facts(diagnosis).items(), tablefmt="plain", disable_numparse=True))
    for severity, heading in HEADINGS.items():
        found = [each for each in diagnosis.findings if each.severity == severity]
        if found:
            more = [f"  ... and {len(found) - _KINDS} more kinds"] if len(found) > _KINDS else []
            parts.append("\n".join([f"{heading}:", *map(_finding, found[:_KINDS]), *more]))
    shown = choose_shown(diagnosis.suspicious)
    if shown:
        count = len(diagnosis.suspicious)
        lines = [f"Unusual annotations ({count}{f', the {len(shown)} most so' if count > len(shown) else ''}):"]
        records = diagnosis.records
        for each in shown:
            record = records[each.image]
            name = annotation_name(each.number, record["annotations"][each.number])
            lines.append(f"  - {diagnosis.name(record)}, {name}: {'; '.join(each.reasons)}")
        parts.append("\n".join(lines))
    if diagnosis.advice:
        parts.append("\n".join(["Is it enough?", *(f"  - {each}" for each in diagnosis.advice)]))
    count = diagnosis.num_problems
    fine = "Nothing stops a training." if len(diagnosis.records) > 1 else "A training needs a second image."
    parts.append(f"{count} problem{'s' if count > 1 else ''} would stop a training." if count else fine)
    return "\n\n".join(filter(None, parts))


def _table(headings: list[str], rows: list[list[str]]) -> str:
    aligned = ["left", *["right"] * (len(headings) - 1)]
    return tabulate(rows, headings, tablefmt="simple", colalign=aligned, disable_numparse=True) if rows else ""


def _finding(finding: Finding) -> str:
    count = f"{len(finding.lines)} x " if finding.lines else ""
    lines = [f"  {count}{finding.kind}" + (f" [{finding.remedy}]" if finding.remedy else "")]
    lines += [f"    - {line}" for line in finding.lines[:_LINES]]
    if len(finding.lines) > _LINES:
        lines.append(f"    ... and {len(finding.lines) - _LINES} more")
    return "\n".join(lines)
