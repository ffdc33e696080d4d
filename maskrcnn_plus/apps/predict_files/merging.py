"""What brings the images of a run together: predictions.json, tables of all images, annotation sets, the report."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskrcnn_plus.apps.predict_files.file_predictor import RunSummary
from maskrcnn_plus.apps.predict_files.records import Records
from maskrcnn_plus.results import MERGED
from maskrcnn_plus.results.report import MAX_PICTURES, ReportEntry, write_report


def merged_files(formats: Sequence[str], with_report: bool) -> list[str]:
    """Names of the files below the output folder that `write_merged` writes."""
    return [name for kind, (name, _) in MERGED.items() if kind in formats] + ["report.html"] * with_report


def write_merged(
    folder: Path,
    records: Records,
    summary: RunSummary,
    formats: Sequence[str],
    class_names: Sequence[str],
    report: Mapping[str, str] | None,
) -> None:
    """Write the files of all images.

    Args:
        folder: of the output.
        records: of the images.
        summary: of the run; gets the entries of the report.
        formats: keys of `maskrcnn_plus.results.FORMATS`.
        class_names: a name a class.
        report: facts for the head of `report.html`; None writes none.

    Raises:
        OSError: a file cannot be written.
    """
    done = [name for _, _, name in summary.done]
    for kind, (name, merge) in MERGED.items():
        if kind in formats:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            merge(folder / name, [records.file(image, kind) for image in done], class_names)
    if report is not None:
        summary.entries = [_entry(records.value(name, "report"), k < MAX_PICTURES) for k, name in enumerate(done)]
        title = "Predictions" + (f" (interrupted after {len(done)} images)" if summary.interrupted else "")
        path, failures = folder / "report.html", summary.failures
        write_report(path, summary.entries, title, details=dict(report), failures=failures, class_names=class_names)


def _entry(facts: dict[str, Any], with_pictures: bool) -> ReportEntry:
    """The entry that a record has as plain data."""
    pictures = facts.pop("pictures")
    return ReportEntry(**facts, pictures=tuple(map(base64.b64decode, pictures)) if with_pictures else None)
