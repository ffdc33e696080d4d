#!/usr/bin/env python3
"""Draw the curves of a training from its metrics.json: the losses above, evaluated figures below.

Usage: python tools/plot_metrics.py output/nuclei/metrics.json --metrics matching/mAP matching/AP50 --output curve.png
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.backend_bases import FigureCanvasBase

from maskrcnn_plus.errors import UserError, run_tool


def read_series(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Name -> (iterations, values) of every scalar in a metrics.json; what is null, NaN or infinite is left out."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            entry = json.loads(line)
            iteration = entry["iteration"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number} is no line of a metrics.json: {line[:80]!r}.") from error
        for name, value in entry.items():
            iterations, values = series.setdefault(name, ([], []))
            if value is not None and math.isfinite(value):
                iterations.append(iteration)
                values.append(value)
    if not series:
        raise UserError(f"{path} is empty: its training has written no figures yet.")
    return series


def smooth(values: list[float], window: int) -> np.ndarray:
    """Running mean, shorter at both ends."""
    padded = np.convolve(values, np.ones(window), mode="same")
    return padded / np.convolve(np.ones(len(values)), np.ones(window), mode="same")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metrics_file", type=Path, help="metrics.json of an output folder")
    parser.add_argument("--metrics", nargs="+", default=["segm/AP"], help="evaluated figures to draw")
    parser.add_argument("--output", required=True, type=Path, help="PNG, SVG or PDF file")
    args = parser.parse_args(argv)
    if args.output.suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        parser.error(f"--output {args.output}: a name that ends with .png, .svg or .pdf is needed")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_tool("plot_metrics", lambda: plot_metrics(args))


def plot_metrics(args: argparse.Namespace) -> None:
    """Draw what the arguments name."""
    series = read_series(args.metrics_file)
    unknown = [name for name in args.metrics if name not in series]
    if unknown:
        evaluated = sorted(name for name in series if "/" in name)
        raise UserError(f"{', '.join(unknown)} not in {args.metrics_file}; it has {', '.join(evaluated)}.")
    figure, (losses, figures) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name in sorted(name for name in series if "loss" in name and "/" not in name):
        iterations, values = series[name]
        width = 2.2 if name == "total_loss" else 1.0
        losses.plot(iterations, smooth(values, max(1, len(values) // 25)), label=name, linewidth=width)
    losses.set(xlabel="iteration", ylabel="loss (running mean)", ylim=(0, None))
    for name in args.metrics:
        iterations, values = series[name]
        last = f"last {values[-1]:.3f}" if values else "no value"
        figures.plot([i + 1 for i in iterations], values, marker="o", label=f"{name} ({last})")
    figures.set(xlabel="iteration", xlim=(0, None))
    for axes in (losses, figures):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=110)
    print(args.output)


if __name__ == "__main__":
    sys.exit(main())
