#!/usr/bin/env python3
"""Look through a folder of annotations before a training: what is there, what is wrong, whether it is enough.

Usage: python tools/check_data.py FOLDER [--report data_report.html] [--fix datasets/clean]

The format is found by the content of the files. The exit code is 1 where something would stop a training;
docs/check_data.md says how to read what is printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from maskrcnn_plus.apps.check_data.run import check_data
from maskrcnn_plus.data.formats.options import add_arguments, from_arguments
from maskrcnn_plus.errors import run_tool


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of images and annotations, or an annotation file")
    parser.add_argument("--val", type=Path, help="a second folder, of images for validation")
    parser.add_argument("--report", type=Path, metavar="PAGE", help="write a page with pictures, such as report.html")
    parser.add_argument("--fix", type=Path, metavar="OUTPUT", help="write what can be used as a COCO data set")
    add_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_tool("check_data", lambda: run(args), failure=1)


def run(args: argparse.Namespace) -> int:
    """Check as the arguments say."""
    return check_data(
        args.folder, args.format, val=args.val, options=from_arguments(args), report=args.report, fix=args.fix
    )


if __name__ == "__main__":
    sys.exit(main())
