#!/usr/bin/env python3
"""Write a folder of annotations as a data set to train on: COCO files, label images or YOLO.

Usage: python tools/convert.py FOLDER --output datasets/mine --to coco

The format is found by the content of the files; docs/own_data.md lists those that are read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from maskrcnn_plus.apps.convert import convert
from maskrcnn_plus.apps.data_sets import WRITERS
from maskrcnn_plus.arguments import output_folder
from maskrcnn_plus.data.formats.options import add_arguments, from_arguments
from maskrcnn_plus.errors import printable, run_tool


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of images and annotations, or an annotation file")
    parser.add_argument("--output", required=True, type=output_folder, help="a new folder")
    parser.add_argument("--to", required=True, choices=WRITERS, help="what is written")
    parser.add_argument("--val", type=float, default=0.2, help="part of the images for validation (default 0.2)")
    parser.add_argument("--tile", type=int, metavar="SIDE", help="cut images that are larger into tiles, pixels")
    parser.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="skip leaves out what is wrong")
    add_arguments(parser)
    args = parser.parse_args(argv)
    if not 0 <= args.val < 1:
        parser.error(f"--val {args.val}: 0 or more and less than 1 is needed")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_tool("convert", lambda: run(args), failure=1)


def run(args: argparse.Namespace) -> None:
    """Convert and print what was found."""
    options = from_arguments(args)
    lines = convert(args.folder, args.output, args.to, args.format, args.val, args.on_error, options, args.tile)
    print(printable("\n".join(lines)))


if __name__ == "__main__":
    sys.exit(main())
