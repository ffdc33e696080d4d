"""The table of an ablation, in Markdown, between two marker comments of a document."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from ablation.plan import Plan
from ablation.record import read_results
from ablation.runs import AP_FIGURES, RECALL
from ablation.speed import IMAGES, read_speed
from maskrcnn_plus.atomic import write_atomically

BEGIN = "<!-- ablation: begin (written by tools/ablate.py) -->"
END = "<!-- ablation: end -->"

HEADER = (
    "| variant | AP50 | AP75 | AP90 | mean AP | mean AP to base | AR@300 | seeds | s / iteration | iterations "
    "| ms / image | parameters, M |"
)


def write_table(plan: Plan, path: Path) -> None:
    """Put the table into a document, which is made where there is none; the text around the markers stays.

    Raises:
        ValueError: as `read_document`.
    """
    before, after = read_document(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f"{before}{BEGIN}\n{render(plan)}{END}{after}".encode())


def read_document(path: Path) -> tuple[str, str]:
    """The text before and after the markers; of a new document where there is none.

    Raises:
        ValueError: the document has no markers, or not in this order.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else f"# Ablations\n\n{BEGIN}\n{END}\n"
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{path} has no place for the table: add the lines {BEGIN!r} and, below, {END!r}.")
    return before, after


def render(plan: Plan) -> str:
    """The table with its legend: a row a variant in the order of the plan, finished runs only."""
    speed = read_speed(plan)
    results = {name: read_results(plan, name) for name in plan.variants}
    lines = ["", HEADER, "|" + "---|" * HEADER.count(" | ") + "---|"]
    for name in plan.variants:
        runs = results[name]
        cells = [name, *(spread([run[key] for run in runs.values()]) for key in AP_FIGURES)]
        cells.append("" if name == plan.base else difference(runs, results[plan.base]))
        cells += [spread([run[RECALL] for run in runs.values()]), str(len(runs))]
        lines.append("| " + " | ".join([*cells, *_speed_cells(speed, name, runs)]) + " |")
    lines += ["", *_legend(plan, speed), ""]
    for name in plan.variants:
        lines += [f"- {name}: {problem}" for problem in _failures(plan, speed, name)]
    return "\n".join(lines).rstrip() + "\n\n"


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard deviation (n - 1); of one value the value alone, of none a dash."""
    if not values:
        return "-"
    text = f"{statistics.fmean(values):{sign}.4f}"
    return f"{text} ± {statistics.stdev(values):.4f}" if len(values) > 1 else text


def difference(runs: dict[int, dict], base: dict[int, dict]) -> str:
    """Mean AP minus that of the base run with the same seed, over the seeds that both have."""
    return spread([run["mAP"] - base[seed]["mAP"] for seed, run in runs.items() if seed in base], sign="+")


def _speed_cells(speed: dict[str, dict], name: str, runs: dict[int, dict]) -> list[str]:
    training, inference = speed["training"].get(name), speed["inference"].get(name)
    counts = [run["iterations"] for run in runs.values()]
    ends = sorted({min(counts), max(counts)}) if counts else ["-"]
    return [
        f"{training['seconds']:.3f}" if training else "-",
        "-".join(map(str, ends)),
        f"{inference['ms']:.0f}" if inference else "-",
        f"{training['parameters'] / 1e6:.2f}" if training else "-",
    ]


def _legend(plan: Plan, speed: dict[str, dict]) -> list[str]:
    return [
        "AP = TP / (TP + FP + FN) of masks of all images together at the IoU thresholds 0.5, 0.75 and 0.9, and its "
        "mean over 0.5, 0.55, ..., 0.9, at the score threshold of the config. "
        f"Each run has {plan.minutes:g} minutes of training at its own speed; data loading and evaluation do not "
        "count. Mean ± standard deviation (n - 1) over the seeds; the difference to the base is that of runs with the "
        "same seed. Speeds are medians of runs in turn in one process, of prediction over "
        f"{IMAGES} test images; {speed['machine']}.",
        "",
        f"    {plan.command}",
    ]


def _failures(plan: Plan, speed: dict[str, dict], name: str) -> list[str]:
    """What went wrong with a variant, a line each: the last line of its log."""
    if name in speed["failed"]:
        return [f"cannot be trained: `{_last(speed['failed'][name])}`"]
    paths = {seed: plan.folder(name, seed) / "failed.json" for seed in plan.seeds}
    found = {seed: json.loads(path.read_text())["error"] for seed, path in paths.items() if path.exists()}
    return [f"seed {seed} failed: `{_last(error)}`" for seed, error in found.items()]


def _last(text: str) -> str:
    return text.strip().splitlines()[-1].strip().replace("`", "'")
