#!/usr/bin/env python3
"""Predict any number of images with Ray, here or on a cluster, into Parquet tables.

Examples:
    python tools/predict_cluster.py --weights output/mine/model_best.pth --input photos/ --output output/tables
    python tools/predict_cluster.py --weights maskrcnn_plus://nuclei --input s3://bucket/plates/ --recursive \\
        --output s3://bucket/predictions --address auto --actors 64 --cpus 4
    python tools/merge_predictions.py --input s3://bucket/predictions --output output/merged

Inputs and output are local paths (on several machines: of a folder that all see), or addresses of an object store that
pyarrow or fsspec knows (s3://, gs://, ...); keys and endpoints come from their usual places (AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, ...). Below the output:
    objects/   a row an object: image_id, file_name, category_id, class, score, bbox (XYWH), area, segmentation (RLE)
    images/    a row an image: image_id, file_name, height, width, objects, ...
    failures/  a row a file that could not be predicted, with the reason
    formats/   what --format asks for, as tools/predict.py writes it
A Parquet file a shard of --shard-size files, which appears whole. A job that was stopped or killed goes on with the
shards that are not there; the same command starts it again. Results of other settings or inputs are refused unless
--overwrite replaces them. Images of more than --spread tiles are predicted by several actors.

Without --address a Ray of its own is started on this machine, and stopped at the end.

Exit code: 0 all predicted, 1 some failed, 2 nothing could be started or written, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tuning import shorten_thread_waits

shorten_thread_waits()  # before PyTorch is loaded

# isort: split

from maskrcnn_plus.apps.predict_files.prediction_loop import FileOptions
from maskrcnn_plus.apps.predictor_source import PredictorSource
from maskrcnn_plus.arguments import output_address
from maskrcnn_plus.data.limits import MAX_PIXELS
from maskrcnn_plus.errors import UserError, run_tool
from maskrcnn_plus.inference.precision import PRECISIONS
from maskrcnn_plus.inference.tile_choice import tile_size

FORMATS = ("overlay", "labels", "coco", "csv", "geojson", "counts", "cutouts", "background")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", required=True, help="checkpoint, exported folder, maskrcnn_plus://nuclei, or torchvision://NAME"
    )
    parser.add_argument("--config-file", help="a LazyConfig file or name (default: what the weights say)")
    parser.add_argument(
        "--input", required=True, nargs="+", help="files, folders, addresses, and @LIST, a list of files"
    )
    parser.add_argument("--output", required=True, type=output_address, help="folder or address for the tables")
    parser.add_argument(
        "--format", nargs="+", choices=FORMATS, default=[], help="files of each image beside the tables"
    )
    parser.add_argument("--actors", type=int, metavar="N", help="processes at most (default: as many as have room)")
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="cores, and threads, of each (default: 1)")
    parser.add_argument("--gpus", type=float, default=0.0, metavar="N", help="of each; 0.5 lets two share one")
    parser.add_argument("--address", help="of a Ray cluster: auto, or ray://host:10001 (default: a Ray of its own)")
    parser.add_argument("--shard-size", type=int, default=500, metavar="N", help="files of a shard (default: 500)")
    parser.add_argument(
        "--spread", type=int, default=256, metavar="N", help="tiles that an actor predicts of one image; 0: all"
    )
    parser.add_argument("--patience", type=float, default=120.0, metavar="S", help="seconds that a store may be away")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images at once in the network (default: 1)")
    parser.add_argument(
        "--score-threshold", type=float, help="least score of an object (default: the config's, or 0.5)"
    )
    parser.add_argument("--diameter", type=float, metavar="PX", help="median diameter of the objects, see predict.py")
    parser.add_argument("--pixel-size", type=float, metavar="UM", help="micrometres a pixel")
    parser.add_argument("--tile", type=tile_size, default="auto", metavar="SIZE|auto|off", help="see predict.py")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="see predict.py")
    parser.add_argument("--recursive", action="store_true", help="take images in sub-folders too")
    parser.add_argument("--device", help="cpu or cuda (default: cuda with --gpus, else the config's)")
    parser.add_argument("--precision", choices=PRECISIONS, help="of the networks (default: float32)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the output")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the config")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    code = run_tool("predict_cluster", lambda: predict(args), overrides=args.opts)
    if code == 130:
        print("The same command goes on with the shards that are missing.", file=sys.stderr)
    return code


def predict(args: argparse.Namespace) -> int:
    """Predict what the arguments name; gives the exit code."""
    try:
        from maskrcnn_plus.apps.cluster.run import Actors, Job, check_ray, predict_cluster
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install 'maskrcnn_plus[cluster]'") from error
    check_ray()
    for name, least in {"actors": 1, "cpus": 1, "shard_size": 1, "batch": 1, "spread": 0, "patience": 0}.items():
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(args, name)}, it must be at least {least}")
    device = args.device or ("cuda" if args.gpus else None)
    source = PredictorSource(
        *(args.weights, args.config_file, tuple(args.opts), args.score_threshold),
        *(device, args.diameter, args.precision),
    )
    options = FileOptions(
        tuple(args.format),
        pixel_size=args.pixel_size,
        tile=args.tile,
        batch_size=args.batch,
        max_pixels=args.max_pixels,
    )
    plan = {"shard_size": args.shard_size, "spread": args.spread, "threads": args.cpus, "patience": args.patience}
    job = Job(source, options, args.output, os.getcwd(), **plan)
    actors = Actors(args.actors, args.cpus, args.gpus, args.address)
    done = predict_cluster(job, args.input, actors, recursive=args.recursive, overwrite=args.overwrite)
    before = f" ({done.files_before} of them by an earlier run)" if done.files_before else ""
    found = f"{done.images} images and {done.objects} objects in {done.seconds:.0f} s of actors' time"
    print(f"{done.files} files{before}, {found}, {done.failures} failed; tables in {args.output}")
    return 1 if done.failures else 0


if __name__ == "__main__":
    sys.exit(main())
