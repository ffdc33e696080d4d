"""Predict images with an exported model where neither PyTorch nor Detectron2 is installed.

    python -m maskrcnn_plus.apps.run_exported MODEL_FOLDER IMAGES ... --output RESULTS --format labels csv

IMAGES are files, folders and glob patterns. Results are written as by tools/predict.py, which also knows videos, stacks
and tiles. Exit code: 0 all predicted, 1 some failed, 2 none.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from maskrcnn_plus.apps.predict_files.inputs import list_inputs
from maskrcnn_plus.errors import describe, run_tool
from maskrcnn_plus.results import DEFAULT_FORMATS, FORMATS, write_results
from maskrcnn_plus.runtime import ExportedModel
from maskrcnn_plus.runtime.graphs import RUNTIMES


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of an exported model of one graph")
    parser.add_argument("images", nargs="+", help="image files, and folders of them")
    parser.add_argument("--output", required=True, help="folder for the results")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=list(DEFAULT_FORMATS), help="what to write")
    parser.add_argument("--score-threshold", type=float, help="least score of an object (default: the model's)")
    parser.add_argument("--runtime", choices=RUNTIMES, help="what runs the graph (default: ONNX Runtime for ONNX)")
    parser.add_argument("--threads", type=int, help="of the runtime (default: its own choice)")
    args = parser.parse_args(argv)
    return run_tool("run_exported", lambda: predict_images(args))


def predict_images(args: argparse.Namespace) -> int:
    """Predict what the arguments name, image by image; gives the exit code."""
    options = {"score_threshold": args.score_threshold, "threads": args.threads, "runtime": args.runtime}
    model = ExportedModel(args.model, **options)
    channels, done, failed, objects = model.description.preprocessing.channels, 0, 0, 0
    for file in list_inputs(args.images, leave_out=[args.output]):
        try:
            found = model.predict(file.path)
            write_results(args.output, file.name, found, file.path, formats=args.format, channels=channels)
        except (ValueError, OSError) as error:
            logging.getLogger(__name__).error("%s", describe(error))
            failed += 1
        else:
            done, objects = done + 1, objects + len(found)
    print(f"{done} images, {objects} objects, {failed} failed; results in {args.output}")
    return (1 if done else 2) if failed else 0


if __name__ == "__main__":
    sys.exit(main())
