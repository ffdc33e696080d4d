"""A page that says what a model is worth: one HTML file that needs no other file and no network."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskrcnn_plus.evaluation.diagnosis import Diagnosis
from maskrcnn_plus.evaluation.errors import DETECTION_KINDS, FOUND, OBJECT_KINDS
from maskrcnn_plus.results import charts
from maskrcnn_plus.results.charts import line_chart
from maskrcnn_plus.results.page import figure_cards, picture, table, write_page
from maskrcnn_plus.results.training_curves import read_metrics, training_charts

__all__ = ["ShownImage", "write_evaluation_report"]

_MOST_LINES = 8  # classes in a chart
_DIFFERS = 0.1  # of a class's threshold from that of all
_TASKS = {"bbox": "boxes", "segm": "masks", "boundary": "boundaries"}
_FIGURES = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "small", "APm": "medium", "APl": "large", "AR": "AR"}
_KINDS = {"doubled": "duplicate", "spurious": "background"}
_TIDE = {
    "Cls": "wrong class",
    "Loc": "poor place or outline",
    "Both": "wrong class and poor place",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}


@dataclass
class ShownImage:
    """An image in the page.

    Attributes:
        heading: what it is an example of.
        facts: of the image, a few words each.
        truth, found: JPEG files with the annotated objects, and with those that the model found.
    """

    heading: str
    facts: Sequence[str]
    truth: bytes
    found: bytes


def write_evaluation_report(
    path: str | Path,
    diagnosis: Diagnosis,
    *,
    title: str = "Evaluation",
    details: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    shown: Sequence[ShownImage] = (),
    metrics_file: str | Path | None = None,
    command: str = "",
) -> None:
    """Write the page.

    Args:
        path: the HTML file to write.
        diagnosis: by `diagnose`.
        title: heading of the page.
        details: facts for its head, such as {"Weights": ...}.
        notes: what was assumed, a sentence each.
        shown: images, in the order to show them.
        metrics_file: `metrics.json` of the training, for its curves; one that is not there is left out.
        command: what goes on from here, to copy.

    Raises:
        OSError: a file cannot be written, or the metrics cannot be read.
    """
    curves = training_charts(read_metrics(metrics_file)) if metrics_file and Path(metrics_file).is_file() else []
    several = len(diagnosis.class_names) > 1
    parts = [
        figure_cards(_cards(diagnosis)),
        _section(
            "In words", f"<ul>{''.join(f'<li>{html.escape(each)}</li>' for each in [*_words(diagnosis), *notes])}</ul>"
        ),
        _section(
            "Average precision", _average_precision(diagnosis), "In percent, by the rules of COCO, of all detections."
        ),
        _section("Classes", _classes(diagnosis)) if several else "",
        f'<section class="charts">{"".join(_quality_charts(diagnosis))}</section>',
        _section(
            "Confusion",
            _confusion(diagnosis),
            f"Rows: what an object is; columns: what it was detected as. {_at(diagnosis)}",
        ),
        _section("Kinds of errors", _errors(diagnosis), _at(diagnosis)),
        _section(
            "What each kind of error costs",
            _tide(diagnosis),
            "Points of mask AP50 that the model would gain without it (TIDE).",
        ),
        f'<section class="charts">{"".join(curves)}</section>' if curves else "",
        *map(_image, shown),
        _section("Go on", f"<pre>{html.escape(command)}</pre>") if command else "",
    ]
    write_page(path, title, parts, details=details, style=_STYLE)


def _cards(diagnosis: Diagnosis) -> dict[str, str]:
    figures = diagnosis.figures
    return {
        "mask AP": _percent(figures["segm"]["AP"]),
        "box AP": _percent(figures["bbox"]["AP"]),
        "boundary AP": _percent(figures["boundary"]["AP"]),
        "recommended score threshold": f"{diagnosis.threshold:.2f}",
        "F1 of masks there, %": _percent(100 * diagnosis.curve.best_f1),
        "images": f"{len(diagnosis.images):,}",
        "objects": f"{diagnosis.curve.objects:,}",
    }


def _words(diagnosis: Diagnosis) -> list[str]:
    """What the figures say, in sentences."""
    objects, detections = diagnosis.errors["objects"], diagnosis.errors["detections"]
    total, found = sum(objects.values()), objects[FOUND]
    if not total:
        return ["There are no objects in these images: only false detections can be judged."]
    share = f"{100 * found / total:.0f}%"
    words = [f"Of {total:,} objects {found:,} are found ({share}) at a score of {diagnosis.threshold:.2f}."]
    wrong = [(count, kind) for kind, count in objects.items() if kind != FOUND]
    if wrong:
        count, kind = max(wrong)
        words.append(f"What most others are: {_KINDS.get(kind, kind)} ({count:,}).")
    extra = sum(detections[kind] for kind in ("spurious", "doubled"))
    if extra:
        words.append(
            f"{extra:,} of {sum(detections.values()):,} detections are of nothing, or second ones of an object."
        )
    ece = diagnosis.calibration["ece"]
    if diagnosis.calibration["num_detections"]:
        words.append(f"A score differs from the share of right detections by {100 * ece:.0f} points in the mean.")
    different = {
        name: value for name, value in diagnosis.class_thresholds.items() if abs(value - diagnosis.threshold) > _DIFFERS
    }
    if different and len(diagnosis.class_names) > 1:
        listed = ", ".join(f"{name} {value:.2f}" for name, value in different.items())
        words.append(f"Classes whose own best threshold is another: {listed}.")
    return words


def _average_precision(diagnosis: Diagnosis) -> str:
    counts = {f"AP{name[0]}": f" ({count:,})" for name, count in diagnosis.sizes.items()}
    headings = ["", *(f"{label}{counts.get(key, '')}" for key, label in _FIGURES.items())]
    rows = [[name, *(_percent(diagnosis.figures[task][key]) for key in _FIGURES)] for task, name in _TASKS.items()]
    return table(headings, rows)


def _classes(diagnosis: Diagnosis) -> str:
    headings = ["class", "objects", *(f"AP of {name}" for name in _TASKS.values()), "best F1", "at score"]
    rows = []
    for name, curve in zip(diagnosis.class_names, diagnosis.class_curves, strict=True):
        precision = [_percent(diagnosis.figures[task].get(f"AP-{name}", math.nan)) for task in _TASKS]
        best = [_percent(100 * curve.best_f1), "-" if curve.threshold is None else f"{curve.threshold:.2f}"]
        rows.append([name, f"{curve.objects:,}", *precision, *best])
    return table(headings, rows)


def _quality_charts(diagnosis: Diagnosis) -> list[str]:
    """Precision and recall, F1 by threshold, calibration."""
    curves = {"all classes": diagnosis.curve}
    if 1 < len(diagnosis.class_names) <= _MOST_LINES - 1:
        curves |= dict(zip(diagnosis.class_names, diagnosis.class_curves, strict=True))
    curve, unit = diagnosis.curve, (0.0, 1.0)
    marks, f1_marks = [], []
    if (best := curve.best) is not None:
        text = (
            f"score {diagnosis.threshold:.2f}: precision {curve.precision[best]:.2f}, recall {curve.recall[best]:.2f}"
        )
        marks.append((curve.recall[best], curve.precision[best], text))
        f1_marks.append((diagnosis.threshold, curve.best_f1, text))
    bins = [each for each in diagnosis.calibration["bins"] if each["count"]]
    calibration = {
        "right detections": ([each["avg_confidence"] for each in bins], [each["avg_accuracy"] for each in bins]),
        "perfect": ([0, 1], [0, 1]),
    }
    ranges = {"x_range": unit, "y_range": unit}
    by_recall = {name: (each.recall, each.precision) for name, each in curves.items()}
    by_score = {name: (each.scores, each.f1) for name, each in curves.items()}
    return [
        line_chart("Precision by recall, IoU 0.5", by_recall, x_label="recall", marks=marks, **ranges),
        line_chart("F1 by score threshold", by_score, x_label="score", marks=f1_marks, **ranges),
        line_chart("Calibration", calibration if bins else {}, x_label="score", **ranges),
    ]


def _confusion(diagnosis: Diagnosis) -> str:
    names = [*diagnosis.class_names, "nothing"]
    if len(diagnosis.class_names) <= 30:
        return charts.heat_table(names, names, diagnosis.confusion)
    pairs = [
        (int(count), names[row], names[column])
        for row, counts in enumerate(diagnosis.confusion)
        for column, count in enumerate(counts)
        if count and row != column
    ]
    largest = [(row, column, count) for count, row, column in sorted(pairs, reverse=True)[:30]]
    return table(["object", "detected as", "times"], largest)


def _at(diagnosis: Diagnosis) -> str:
    return f"At a score of {diagnosis.threshold:.2f} and an IoU of masks of 0.5."


def _errors(diagnosis: Diagnosis) -> str:
    kinds = list(dict.fromkeys([*OBJECT_KINDS, *DETECTION_KINDS]))
    rows = []
    for name, allowed in (("objects", OBJECT_KINDS), ("detections", DETECTION_KINDS)):
        rows.append([name, *(f"{diagnosis.errors[name][kind]:,}" if kind in allowed else "" for kind in kinds)])
    return table(["", *(_KINDS.get(kind, kind) for kind in kinds)], rows)


def _tide(diagnosis: Diagnosis) -> str:
    gains, counts = diagnosis.tide["delta_ap"], diagnosis.tide["counts"]
    rows = [[name, f"{counts[key]:,}", _percent(100 * gains[key])] for key, name in _TIDE.items()]
    return table(["kind", "times", "points"], rows)


def _image(image: ShownImage) -> str:
    facts = "".join(f"<span>{html.escape(fact)}</span>" for fact in image.facts)
    figures = "".join(
        f"<figure><figcaption>{alt}</figcaption>{picture(jpeg, alt)}</figure>"
        for alt, jpeg in (("Annotated", image.truth), ("Found", image.found))
    )
    return (
        f'<article class="card"><h3>{html.escape(image.heading)}</h3><p class="facts">{facts}</p>'
        f'<div class="pair">{figures}</div></article>'
    )


def _section(heading: str, body: str, note: str = "") -> str:
    note = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f'<section class="card part"><h2>{html.escape(heading)}</h2>{note}{body}</section>'


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


_STYLE = f"""{charts.STYLE}
.part{{margin-bottom:14px}}
.part ul{{margin:0;padding-left:20px}}
.part .note{{margin:0 0 8px}}
pre{{white-space:pre-wrap;overflow-wrap:anywhere;margin:0}}
"""
