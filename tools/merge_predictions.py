#!/usr/bin/env python3
"""Make COCO results, and files of each image, of the tables of tools/predict_cluster.py.

Examples:
    python tools/merge_predictions.py --input output/tables --output output/merged
    python tools/merge_predictions.py --input s3://bucket/predictions --output output/merged --format labels csv counts

Writes predictions.json, which is what tools/predict.py writes of the same images, failures.json, and with --format
files of each image and what brings them together. A job that is not finished is refused; the missing shards are named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from maskrcnn_plus.arguments import output_address
from maskrcnn_plus.errors import UserError, run_tool

FORMATS = ("labels", "csv", "geojson", "counts")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="folder or address of the tables")
    parser.add_argument("--output", required=True, type=output_address, help="folder for the files")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=[], help="files of each image, too")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_tool("merge_predictions", lambda: merge(args))


def merge(args: argparse.Namespace) -> None:
    """Merge and say what there is."""
    try:
        from maskrcnn_plus.apps.cluster.merge import merge_predictions
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install 'maskrcnn_plus[cluster]'") from error
    found = merge_predictions(args.input, args.output, args.format)
    print(
        f"{found['images']} images, {found['objects']} objects, {found['failures']} failed; predictions.json in "
        f"{args.output}"
    )


if __name__ == "__main__":
    sys.exit(main())
