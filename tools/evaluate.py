#!/usr/bin/env python3
"""Say what trained weights are worth on annotated images, in figures and as a page to look through.

Examples:
    python tools/evaluate.py --weights output/mine/model_best.pth --data datasets/mine
    python tools/evaluate.py --weights output/mine/model_best.pth --data export.zip-folder --split test \\
        --report evaluation.html
    python tools/evaluate.py --predictions output/tables --data datasets/mine    # of tools/predict_cluster.py

The format of the data is found by its content (docs/own_data.md); classes are matched by name. docs/evaluate.md says
how to read the page. Weights that do not know their config need --config-file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tuning import keep_memory_on_cpu, shorten_thread_waits

shorten_thread_waits()  # before PyTorch is loaded

# isort: split

from maskrcnn_plus.apps.evaluate import evaluate_records, figures_table, read_evaluation_data, write_report
from maskrcnn_plus.checkpoints.choice import choose_config
from maskrcnn_plus.checkpoints.sources import folder_of
from maskrcnn_plus.data.formats.options import add_arguments, from_arguments
from maskrcnn_plus.errors import UserError, run_tool
from maskrcnn_plus.inference.precision import PRECISIONS
from maskrcnn_plus.inference.predictor import Predictor

if TYPE_CHECKING:
    from maskrcnn_plus.apps.cluster.stored import StoredPredictor


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--weights", help="checkpoint, exported folder, maskrcnn_plus://nuclei, or torchvision://NAME")
    what.add_argument("--predictions", help="tables of tools/predict_cluster.py, made with --score-threshold 0")
    parser.add_argument("--data", required=True, type=Path, help="folder of images and annotations, or a file of them")
    parser.add_argument("--split", help="train, val, test or all (default: val, else test, else all)")
    parser.add_argument(
        "--report",
        nargs="?",
        type=Path,
        const="",
        help="write a page (default: report.html beside the weights, here for weights that are no file)",
    )
    parser.add_argument("--config-file", help="a LazyConfig file or name (default: what the weights say)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the config's train.device)")
    parser.add_argument("--precision", choices=PRECISIONS, help="of the networks (default: float32)")
    parser.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="skip leaves out what is wrong")
    add_arguments(parser)
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args(argv)
    if args.report and "=" in str(args.report) and not args.report.suffix.startswith(".htm"):
        parser.error(f"--report {args.report}: no page; put changes to the config before --report")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_tool("evaluate", lambda: evaluate(args), overrides=args.opts, failure=1)


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate, print the figures and write the page."""
    data = read_evaluation_data(args.data, args.split, args.format, args.on_error, from_arguments(args), args.weights)
    predictor = open_predictions(args.predictions) if args.predictions else build_predictor(args)
    diagnosis = evaluate_records(predictor, data, on_error=args.on_error)
    print(figures_table(diagnosis))
    for note in data.notes:
        print(f"  assumed: {note}")
    if args.report is not None:
        beside = folder_of(args.weights) if args.weights else Path()
        path = args.report if str(args.report) not in ("", ".") else beside / "report.html"
        where = f"{args.data} ({data.split})"
        weights = args.weights or args.predictions
        write_report(path, diagnosis, predictor, weights=weights, data=where, notes=data.notes)
        print(f"written to {path}")


def build_predictor(args: argparse.Namespace) -> Predictor:
    """Of the weights."""
    cfg = choose_config(args.config_file, args.weights, args.opts)
    predictor = Predictor(cfg, args.weights, device=args.device, score_threshold=0.0, precision=args.precision)
    keep_memory_on_cpu(predictor.device)
    return predictor


def open_predictions(address: str) -> StoredPredictor:
    """Of tables."""
    try:
        from maskrcnn_plus.apps.cluster.stored import StoredPredictor
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install 'maskrcnn_plus[cluster]'") from error
    return StoredPredictor(address)


if __name__ == "__main__":
    sys.exit(main())
