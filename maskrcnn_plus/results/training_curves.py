"""The curves of a training, from the `metrics.json` that it wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from maskrcnn_plus.results.charts import Line, line_chart

_WINDOW = 15  # values of the training loss that are averaged
_AP = ("AP", "mAP", "AP50")


def read_metrics(path: str | Path) -> dict[str, Line]:
    """Iterations and values of each figure; what is null, and lines that are no entries, are left out.

    Raises:
        OSError: the file cannot be read.
    """
    series: dict[str, tuple[list[float], list[float]]] = {}
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            iteration = float(entry.pop("iteration"))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        for name, value in entry.items():
            if isinstance(value, int | float) and math.isfinite(value):
                iterations, values = series.setdefault(name, ([], []))
                iterations.append(iteration)
                values.append(float(value))
    return series


def training_charts(metrics: dict[str, Line]) -> list[str]:
    """Charts of the losses of training and validation, and of the average precision; none of what is not there.

    Args:
        metrics: by `read_metrics`.
    """
    total = {"training": _smoothed(metrics["total_loss"])} if "total_loss" in metrics else {}
    total |= {"validation": metrics["val_loss"]} if "val_loss" in metrics else {}
    parts = {name.removeprefix("loss_"): _smoothed(metrics[name]) for name in metrics if name.startswith("loss_")}
    checks = {name.removeprefix("val_loss_"): metrics[name] for name in metrics if name.startswith("val_loss_")}
    precision = {name: metrics[name] for name in metrics if name.rpartition("/")[2] in _AP and "/" in name}
    percent = {name: line for name, line in precision.items() if name.startswith(("bbox/", "segm/"))}
    charts = [
        line_chart("Loss", total, x_label="iteration"),
        line_chart("Parts of the training loss", parts, x_label="iteration"),
        line_chart("Parts of the validation loss", checks, x_label="iteration"),
        line_chart("Average precision while training, %", percent, x_label="iteration"),
        line_chart(
            "Matching while training",
            {name: line for name, line in precision.items() if name not in percent},
            x_label="iteration",
        ),
    ]
    return [chart for chart in charts if chart]


def _smoothed(line: Line) -> Line:
    """A line of running means, over fewer values at both ends."""
    values = np.asarray(line[1], dtype=float)
    window = np.ones(min(_WINDOW, len(values)))
    return line[0], np.convolve(values, window, mode="same") / np.convolve(np.ones_like(values), window, mode="same")
