#!/usr/bin/env python3
"""Draw the curves of a training from its metrics.json: the losses above, evaluated figures below.

Usage: python tools/plot_metrics.py output/nuclei/metrics.json --metrics matching/mAP matching/AP50 --output curve.png
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def read_series(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Name -> (iterations, values) of every scalar in a metrics.json."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        for name, value in entry.items():
            iterations, values = series.setdefault(name, ([], []))
            iterations.append(entry["iteration"])
            values.append(value)
    return series


def smooth(values: list[float], window: int) -> np.ndarray:
    """Running mean, shorter at both ends."""
    padded = np.convolve(values, np.ones(window), mode="same")
    return padded / np.convolve(np.ones(len(values)), np.ones(window), mode="same")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metrics_file", type=Path, help="metrics.json of an output folder")
    parser.add_argument("--metrics", nargs="+", default=["segm/AP"], help="evaluated figures to draw")
    parser.add_argument("--output", required=True, type=Path, help="PNG or SVG file")
    args = parser.parse_args()
    if not args.metrics_file.is_file():
        sys.exit(f"plot_metrics: {args.metrics_file} does not exist")
    series = read_series(args.metrics_file)
    unknown = [name for name in args.metrics if name not in series]
    if unknown:
        evaluated = sorted(name for name in series if "/" in name)
        sys.exit(f"plot_metrics: {', '.join(unknown)} not in {args.metrics_file}; it has {', '.join(evaluated)}")
    figure, (losses, figures) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name in sorted(name for name in series if "loss" in name and "/" not in name):
        iterations, values = series[name]
        width = 2.2 if name == "total_loss" else 1.0
        losses.plot(iterations, smooth(values, max(1, len(values) // 25)), label=name, linewidth=width)
    losses.set(xlabel="iteration", ylabel="loss (running mean)", ylim=(0, None))
    for name in args.metrics:
        iterations, values = series[name]
        figures.plot([i + 1 for i in iterations], values, marker="o", label=f"{name} (last {values[-1]:.3f})")
    figures.set(xlabel="iteration", xlim=(0, None))
    for axes in (losses, figures):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=110)
    print(args.output)


if __name__ == "__main__":
    main()
