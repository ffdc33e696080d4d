#!/usr/bin/env python3
"""Compare configs that each change one thing of a base config, after equal training time, over several seeds.

Examples:
    python tools/ablate.py --base nuclei/mask_rcnn_lite0_fpn --variants nuclei/variants --seeds 0 1 2 --minutes 5 \\
        --table docs/ablations.md dataset.root=datasets/nuclei
    python tools/ablate.py --base nuclei/mask_rcnn_lite0_fpn --variants nuclei/variants/groie my_variant.py \\
        --seeds 0 --minutes 5 --output output/mine dataset.root=datasets/nuclei
    python tools/ablate.py ... --only-table --table docs/ablations.md

First the training iteration of all variants is timed in turn in one process; each variant then trains for as many
iterations as take the given minutes at its own speed. The trainings run one at a time, all variants with the first
seed, then with the next, so that the table of an ablation that was stopped is complete up to a seed. At last the
trained models predict images in turn. Below --output:
    settings.json            what all runs share; variants and seeds may be added later
    speed.json               seconds of an iteration, milliseconds of an image, parameters
    VARIANT/seed_N/          console.txt, metrics.json, the weights, and result.json or failed.json

The same command continues an ablation that was stopped or killed: finished runs are kept, a half one goes on from its
last checkpoint, failed ones are tried again. A failed run is recorded, and the others go on. Beside a table FILE.md is
FILE.json with the figures of all runs, from which the command goes on where --output is lost or on another machine.

Exit code: 0 all finished, 1 some failed, 2 nothing could be started or written, 130 interrupted (Ctrl-C).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tuning import shorten_thread_waits

shorten_thread_waits()  # before PyTorch is loaded

# isort: split

from ablation.plan import Plan, alone, keep_settings, make_plan
from ablation.record import record_path, restore_record, write_record
from ablation.runs import Evaluate, Train, evaluate_run, run_all, train_net, trained_weights
from ablation.speed import measure_inference, measure_training
from ablation.table import read_document, write_table

from maskrcnn_plus.arguments import output_folder
from maskrcnn_plus.errors import UserError, run_tool


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a LazyConfig file, or the name of a shipped config")
    parser.add_argument("--variants", nargs="+", default=[], help="the same, or a folder of shipped configs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--minutes", type=float, default=5, help="of training, a run (default: 5)")
    parser.add_argument("--output", type=output_folder, default="output/ablation", help="folder (default: %(default)s)")
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="document to put the table into")
    parser.add_argument("--only-table", action="store_true", help="write the table of what is there")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each that are timed (default: 7)")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to all configs; at the end")
    args = parser.parse_intermixed_args(argv)
    if args.only_table and not args.table:
        parser.error("--only-table needs --table FILE.md")
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    return args


def main(argv: Sequence[str] | None = None, train: Train = train_net, evaluate: Evaluate = evaluate_run) -> int:
    args = parse_arguments(argv)
    code = run_tool("ablate", lambda: ablate(args, train, evaluate), overrides=args.opts)
    if code == 130:
        print("The same command goes on.", file=sys.stderr)
    return code


def ablate(args: argparse.Namespace, train: Train, evaluate: Evaluate) -> int:
    """Do what the arguments say; gives the exit code."""
    plan = make_plan(args.base, args.variants, args.seeds, args.minutes, args.output, args.opts)
    if args.only_table and not (plan.output / "settings.json").exists():
        raise UserError(f"{plan.output} holds no ablation.")
    keep_settings(plan)
    if args.only_table:
        write_document(plan, args.table)
        return 0
    with alone(plan.output) as lock:
        failed = run(plan, args.rounds, args.table, lock, train, evaluate)
    if failed:
        print(f"ablate: failed: {'; '.join(failed)}. The same command tries again.", file=sys.stderr)
    return 1 if failed else 0


def run(plan: Plan, rounds: int, table: Path | None, lock: int, train: Train, evaluate: Evaluate) -> list[str]:
    """Measure, train, measure; the table is written at the end, also of an interrupted ablation.

    Returns:
        What failed.
    """
    if table:
        read_document(table)  # a document without markers is refused now, not after hours
        restore_record(plan, record_path(table))
    try:
        failed = run_all(plan, measure_training(plan, rounds), lock, train, evaluate)
        failed += measure_inference(plan, trained_weights(plan), rounds)
    finally:
        if table:
            write_document(plan, table)
    return failed


def write_document(plan: Plan, table: Path) -> None:
    """The table, and what it shows as a record beside it."""
    write_table(plan, table)
    write_record(plan, record_path(table))


if __name__ == "__main__":
    sys.exit(main())
