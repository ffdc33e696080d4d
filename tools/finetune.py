#!/usr/bin/env python3
"""Train a Mask R-CNN on a folder of annotated images, configured from what they are.

Examples:
    python tools/finetune.py --data FOLDER --output output/mine
    python tools/finetune.py --data FOLDER --output output/mine --hours 0.5 --classes cell nucleus
    python tools/finetune.py --data FOLDER --output output/mine --dry-run        # the config alone, to read and edit
    python tools/finetune.py --data FOLDER --output output/mine --resume         # after a stop, as config.py says
    python tools/finetune.py --data FOLDER --output output/mine train.max_iter=2000 dataset.scale=1.0

The annotations may be of any format that docs/own_data.md lists. What was decided, and why, stands in
OUTPUT/config.py, which tools/train_net.py runs too; `key=value` wins over what the data say. The best weights are
OUTPUT/model_best.pth, which tools/predict.py takes, and OUTPUT/report.html shows what they are worth.

Exit code: 0 finished, 1 the data or something else made it impossible (the last line says what), 2 the command cannot
be understood, 128 + N stopped by signal N after a checkpoint was written (130 for Ctrl-C).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tuning import keep_memory_on_cpu, shorten_thread_waits

shorten_thread_waits()  # before PyTorch is loaded

# isort: split

from maskrcnn_plus.apps.finetune.report import report
from maskrcnn_plus.apps.finetune.run import CONFIG, Request, configure, train
from maskrcnn_plus.arguments import output_folder
from maskrcnn_plus.data.formats.options import add_arguments, from_arguments
from maskrcnn_plus.device import default_device
from maskrcnn_plus.errors import UserError, run_tool


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder or annotation file")
    parser.add_argument("--output", required=True, type=output_folder, help="folder for the training")
    parser.add_argument("--hours", type=float, default=1.0, help="for training and evaluation (default: 1)")
    parser.add_argument(
        "--weights",
        help="to start from: a file or source of weights (default: the shipped model where it suits, else the "
        "backbone's own)",
    )
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="classes to learn (default: all with objects)")
    parser.add_argument(
        "--val", type=float, default=0.2, help="part of the images for validation, without such a split (default: 0.2)"
    )
    parser.add_argument("--orientation", choices=["any", "upright"], help="of the images (default: guessed)")
    parser.add_argument(
        "--on-error",
        choices=["skip", "raise"],
        default="skip",
        help="what images and annotations do that cannot be used: left out and listed, or an error (default: skip)",
    )
    parser.add_argument("--dry-run", action="store_true", help="write the config and stop")
    parser.add_argument("--resume", action="store_true", help="go on with the training in the output folder")
    add_arguments(parser)
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args(argv)
    args.opts += [name for name in args.classes or () if "=" in name]  # written behind the classes
    args.classes = [name for name in args.classes or () if "=" not in name] or None
    return args


def finetune(args: argparse.Namespace) -> None:
    """Configure and train."""
    keep_memory_on_cpu(default_device())
    config = args.output / CONFIG
    if args.resume and not config.is_file():
        raise UserError(f"--resume: there is no {config}. Start without it.")
    if not args.resume:
        request = Request(
            args.data,
            args.output,
            hours=args.hours,
            weights=args.weights,
            classes=args.classes,
            format=args.format,
            options=from_arguments(args),
            val=args.val,
            orientation=args.orientation,
            on_error=args.on_error,
            overrides=args.opts,
        )
        configure(request)
    if not args.dry_run:
        overrides = args.opts if args.resume else ()
        train(config, resume=args.resume, overrides=overrides, output=args.output)
        report(config, overrides)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_tool("finetune", lambda: finetune(args), overrides=args.opts, failure=1)


if __name__ == "__main__":
    sys.exit(main())
