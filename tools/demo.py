#!/usr/bin/env python3
"""Show what the package does: the shipped model on images of nuclei, then a training of minutes on synthetic cells.

Usage: python tools/demo.py --output output/demo

Everything is rendered, nothing is downloaded. OUTPUT/report.html has the images and what was found. The same command
goes on with a training that was stopped; `key=value` changes its config (configs/demo/mask_rcnn_lite0_fpn.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tuning import keep_memory_on_cpu, shorten_thread_waits

shorten_thread_waits()  # before PyTorch is loaded

# isort: split

from maskrcnn_plus.apps.demo import run_demo
from maskrcnn_plus.arguments import output_folder
from maskrcnn_plus.device import default_device
from maskrcnn_plus.errors import run_tool


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=output_folder, default=Path("output/demo"), help="folder (default output/demo)"
    )
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the training's config")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_tool("demo", lambda: demo(args), overrides=args.opts, failure=1)


def demo(args: argparse.Namespace) -> None:
    """Run it."""
    keep_memory_on_cpu(default_device())
    run_demo(args.output, args.opts)


if __name__ == "__main__":
    sys.exit(main())
