#!/usr/bin/env python3
"""Export a trained model, so that it runs faster or without PyTorch, and check that it still finds the same.

Examples:
    python tools/export.py --weights output/mine/model_best.pth --output output/mine/model_int8 --precision int8
    python tools/export.py --weights output/mine/model_best.pth --output output/mine/model_fp32 --gate datasets/mine
    python tools/predict.py --weights output/mine/model_int8 --input new/ --output predictions

--to openvino makes a folder that is a model like any other for predict and evaluate, the fastest on CPUs; --to onnx, or
--whole, one graph for programs without PyTorch (maskrcnn_plus.runtime). docs/deploy.md says what is in them.

The gate: the original and the exported model predict the validation images of the training, or those of --gate. If the
average precision falls by more than --max-drop, the export fails with a table of what differs; export_report.html has
all of it.

Exit code: 0 exported, 1 the gate failed or something cannot be exported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tuning import keep_memory_on_cpu, shorten_thread_waits

shorten_thread_waits()  # before PyTorch is loaded

# isort: split

from maskrcnn_plus.apps.export_model.report import PAGE_NAME, changes_table
from maskrcnn_plus.apps.export_model.run import PRECISIONS, export_model
from maskrcnn_plus.arguments import output_folder
from maskrcnn_plus.errors import run_tool


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="checkpoint of a trained model")
    parser.add_argument("--output", required=True, type=output_folder, help="folder for the exported model")
    parser.add_argument("--to", choices=("openvino", "onnx"), default="openvino", help="(default: %(default)s)")
    parser.add_argument(
        "--whole", action="store_true", help="for openvino: one graph for programs without PyTorch, as onnx always is"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the weights (default: %(default)s)")
    parser.add_argument(
        "--calibrate", metavar="FOLDER", help="images that int8 is calibrated on (default: those of the training)"
    )
    parser.add_argument(
        "--gate", metavar="PATH", help="annotated images of any format (default: the validation data of the training)"
    )
    parser.add_argument(
        "--max-drop", type=float, help="of AP, of 1, that is allowed (default: 0.005 for int8, else 0.0005)"
    )
    parser.add_argument(
        "--diameter",
        type=float,
        metavar="PIXELS",
        help="median diameter of the objects, for one graph of a model that brings them to one size",
    )
    parser.add_argument("--config-file", help="a LazyConfig file or name (default: what the weights say)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_tool("export", lambda: export(args), failure=1)


def export(args: argparse.Namespace) -> int:
    """Export, print what the gate found; gives the exit code."""
    keep_memory_on_cpu("cpu")
    result = export_model(
        args.weights,
        args.output,
        to="hybrid" if args.to == "openvino" and not args.whole else args.to,
        precision=args.precision,
        config_file=args.config_file,
        calibrate=args.calibrate,
        gate=args.gate,
        max_drop=args.max_drop,
        diameter=args.diameter,
    )
    if result.comparison is not None:
        print(changes_table(result.comparison))
    for note in result.notes:
        print(f"  {note}")
    if result.passed is not None:  # else it has been said
        print(result.gate)
    if result.passed is False:
        print(f"export: failed; what differs is in {result.folder / PAGE_NAME}", file=sys.stderr)
        return 1
    print(f"written to {result.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
