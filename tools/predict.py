#!/usr/bin/env python3
"""Segment instances in images and videos with a trained model.

Examples:
    python tools/predict.py --weights output/nuclei/model_best.pth --input slides/ more/*.tif --output predictions \\
        --report
    python tools/predict.py --config-file nuclei/mask_rcnn_lite0_fpn --weights model.pth --input "slides/*.png" \\
        film.mp4 --output predictions --format labels csv geojson --pixel-size 0.25 --opts dataset.scale=2.0

A checkpoint of a training knows its config, and so does the folder of an exported model (tools/export.py); weights of
other origin need --config-file.

Inputs are files, folders, glob patterns, videos and animated GIF, WebP and PNG (each frame an image, NAME/frame_000001)
and TIFF stacks (each page an image, NAME_p0001; --project max makes one of a z stack). Below the output folder, file by
file:
    overlay   overlays/NAME.png    the image with its masks drawn in
    labels    labels/NAME.png      16-bit, value k = k-th object; 32-bit .tif with more than 65535 objects
    coco      coco/NAME.json       COCO results with RLE masks; of all images: predictions.json
    csv       csv/NAME.csv         a row an object, lengths and areas in pixels, or in micrometres with --pixel-size or
                                   where a TIFF says its resolution; of all images: predictions.csv
    geojson   geojson/NAME.geojson polygons, which QuPath opens
    counts    counts/NAME.csv      objects of each class, share of the image that they cover; of all images: counts.csv
    label-tiff  label-tiff/NAME.tif  as labels, of a stack one file with its axes, calibrated, for ImageJ and napari
    cutouts   cutouts/NAME/        each object alone with alpha, K_CLASS.png; where they were: cutouts/NAME.csv
    background  background/NAME.png  what belongs to no object removed, blurred or a colour (--background)
Annotations that people correct and train on again, each in a folder with its images (linked, or copied):
    coco-dataset  images/ and annotations/instances_default.json, masks as RLE
    yolo      images/, labels/ and data.yaml: the outline of the largest part of an object, without holes
    labelme   NAME.json beside the image, masks as shapes
    cvat      images/ and annotations.xml (CVAT for images 1.1), masks as runs
    imagej    NAME.zip beside the image, a RoiSet with class and score as properties
and report.html with --report. NAME is the file name without suffix, below its input folder; equal ones are told apart.

A run that was stopped or killed goes on where it was: images whose results are there, with the same settings and an
unchanged file, are not predicted again, nor are the tiles of a large one. Results of other settings are refused unless
--overwrite replaces them. 8- and 16-bit images, grey or RGB, are read as they are; CMYK and palette colours become RGB,
1-bit becomes black and white, what a file says is alpha is dropped, and --channel or dataset.channels=[0,2,2] picks
channels of other files. A file that cannot be used is named with the reason, and the rest is done.

With --track, objects keep an identity through the frames of a video, animation or stack, or through the images of a
folder: tracks.csv (a row an object and frame) and track_counts.csv (objects a class, also those that crossed
--count-line or were in --count-zone); overlay is then overlays/NAME.mp4, labels and label-tiff are NAME.tif, [T, H, W],
value = identity. See docs/video.md.

Many images are split among the jobs of a cluster without any service: `--shard 3/64` predicts every 64th file from the
third on, into the same output folder as the others, and `--merge` then writes what brings all images together. On one
machine `--workers N` does it in N processes. `--input @files.txt` takes a list, a file a line.

Exit code: 0 all predicted, 1 some failed, 2 none could be predicted or nothing could be started or written,
130 interrupted (Ctrl-C; what was done is kept).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime

from tuning import keep_memory_on_cpu, shorten_thread_waits

shorten_thread_waits()  # before PyTorch is loaded

# isort: split

from film_arguments import add_film_arguments, check_film_arguments, track_options

from maskrcnn_plus.apps.predict_files.file_predictor import RunSummary
from maskrcnn_plus.apps.predict_files.records import Shard
from maskrcnn_plus.apps.predict_files.run import predict_files
from maskrcnn_plus.apps.predict_files.shards import merge_shards
from maskrcnn_plus.apps.predict_files.workers import Workers
from maskrcnn_plus.apps.predictor_source import PredictorSource
from maskrcnn_plus.apps.track_files.run import DEFAULT_FORMATS as TRACK_FORMATS
from maskrcnn_plus.apps.track_files.run import track_files
from maskrcnn_plus.arguments import output_folder
from maskrcnn_plus.data.channels import PROJECTIONS
from maskrcnn_plus.data.limits import MAX_PIXELS
from maskrcnn_plus.errors import run_tool
from maskrcnn_plus.inference.precision import PRECISIONS
from maskrcnn_plus.inference.tile_choice import tile_size
from maskrcnn_plus.results import DEFAULT_FORMATS, FORMATS
from maskrcnn_plus.results.geojson import OBJECT_TYPES


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="checkpoint, exported folder, maskrcnn_plus://nuclei, or torchvision://NAME")
    parser.add_argument(
        "--config-file", help="a LazyConfig file, or the name of a shipped config (default: what the weights say)"
    )
    parser.add_argument(
        "--input", nargs="+", help="image and video files, folders, glob patterns, and @LIST, a text file of them"
    )
    parser.add_argument("--output", required=True, type=output_folder, help="folder for the results")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        help=f"what to write (default: {' '.join(DEFAULT_FORMATS)}; with --track: {' '.join(TRACK_FORMATS)})",
    )
    parser.add_argument(
        "--score-threshold", type=float, help="least score of an object (default: the config's, or 0.5)"
    )
    parser.add_argument(
        "--diameter",
        type=float,
        metavar="PX",
        help="median diameter of the objects in pixels, for a model that brings them to one size (default: estimated "
        "for each image)",
    )
    parser.add_argument("--pixel-size", type=float, metavar="UM", help="micrometres a pixel, for csv")
    parser.add_argument(
        "--channel",
        type=_channel,
        metavar="NUMBER|NAME",
        help="channel to predict, counted from 0 or by its name (OME-TIFF, ImageJ); several: dataset.channels",
    )
    parser.add_argument("--project", choices=sorted(PROJECTIONS), help="make one image of a z stack")
    parser.add_argument(
        "--roi",
        type=_roi,
        metavar="X,Y,WIDTH,HEIGHT",
        help="predict this part of each image, in pixels (of level 0 of a slide); results are in the whole image's "
        "coordinates",
    )
    parser.add_argument(
        "--skip-background",
        action="store_true",
        help="do not predict tiles in which no channel varies by more than a twentieth of the image's range",
    )
    parser.add_argument(
        "--geojson-type", choices=OBJECT_TYPES, default="detection", help="QuPath's type of object (default: detection)"
    )
    parser.add_argument(
        "--tile",
        type=tile_size,
        default="auto",
        metavar="SIZE|auto|off",
        help="predict by overlapping tiles of SIZE pixels; auto: only images that are very large, or that the network "
        "would see smaller than others (default)",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help=f"images of more pixels fail, unless a TIFF that is read by parts (default: {MAX_PIXELS})",
    )
    parser.add_argument(
        "--background",
        default="transparent",
        metavar="transparent|blur|#RRGGBB",
        help="what the format background puts behind the objects (default: transparent)",
    )
    parser.add_argument("--soft", action="store_true", help="soft edges of cut-outs, from the masks' probabilities")
    parser.add_argument("--recursive", action="store_true", help="take images in sub-folders of input folders too")
    parser.add_argument("--report", action="store_true", help="write report.html, images beside their predictions")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the config's train.device)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the networks: bfloat16 is faster on GPUs and CPUs with AVX512-BF16 or AMX (default: float32)",
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images at once in the network (default: 1)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes on this machine, which share its cores")
    parser.add_argument("--shard", metavar="K/N", help="only the K-th of N parts of the files")
    parser.add_argument("--merge", action="store_true", help="join what all shards left in --output; needs only that")
    add_film_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the output folder")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the config")
    args = parser.parse_args(argv)
    missing = [f"--{name}" for name in ("weights", "input") if not (args.merge or getattr(args, name))]
    if missing:
        known = "maskrcnn_plus://nuclei, or torchvision://maskrcnn_resnet50_fpn for photographs of everyday things"
        hint = f" (--weights: model_best.pth of a training, {known})" if "--weights" in missing else ""
        parser.error(f"the following arguments are required: {', '.join(missing)}{hint}")
    check_film_arguments(parser, args)
    return args


def _channel(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _roi(text: str) -> tuple[int, int, int, int]:
    x, y, width, height = map(int, text.split(","))
    return x, y, width, height


_roi.__name__ = "X,Y,WIDTH,HEIGHT"  # how argparse calls it in an error


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_tool("predict", lambda: predict(args), overrides=args.opts)


def predict(args: argparse.Namespace) -> int:
    """Predict what the arguments name; gives the exit code."""
    if args.merge:
        return report_on(merge_shards(args.output), args.output)
    source = PredictorSource(
        *(args.weights, args.config_file, tuple(args.opts), args.score_threshold),
        *(args.device, args.diameter, args.precision),
        *(None if args.channel is None else (args.channel,), args.project),
    )
    shard = Shard.parse(args.shard) if args.shard else None
    workers = Workers(args.workers, source) if args.workers is not None else None
    predictor = source.build()
    keep_memory_on_cpu(predictor.device)
    details = {
        **({"Config": args.config_file} if args.config_file else {}),
        "Weights": args.weights,
        "Score threshold": f"{predictor.score_threshold:g}",
        **({"Diameter": predictor.auto_scale.describe()} if predictor.auto_scale else {}),
        **({"Channel": f"{args.channel}"} if args.channel is not None else {}),
        **({"Projection": args.project} if args.project else {}),
        **({"Part of each image": ",".join(map(str, args.roi))} if args.roi else {}),
        "Date": datetime.now().strftime("%Y-%m-%d %H:%M"),
        **({"Changes": " ".join(args.opts)} if args.opts else {}),
    }
    options = {
        "recursive": args.recursive,
        "pixel_size": args.pixel_size,
        "tile": args.tile,
        "report": details if args.report else None,
        "overwrite": args.overwrite,
        "max_pixels": args.max_pixels,
        "background": args.background,
        "soft": args.soft,
        "roi": args.roi,
        "skip_background": args.skip_background,
        "object_type": args.geojson_type,
        "batch_size": args.batch,
        "workers": workers,
    }
    if args.track:
        options |= {"formats": args.format or TRACK_FORMATS, "track": track_options(args)}
        summary = track_files(predictor, args.input, args.output, **options)
    else:
        options |= {"formats": args.format or DEFAULT_FORMATS, "shard": shard}
        summary = predict_files(predictor, args.input, args.output, **options)
    return report_on(summary, args.output)


def report_on(summary: RunSummary, output: str) -> int:
    """Say what became of a run; gives the exit code."""
    before = f" ({summary.num_before} of them by an earlier run)" if summary.num_before else ""
    num_images = summary.num_images + summary.num_before
    failed = f"{len(summary.failures)} failed"
    print(f"{num_images} images{before}, {summary.num_objects} objects, {failed}; results in {output}")
    if summary.interrupted:
        print(f"predict: interrupted, {summary.num_left} files left; the same command goes on", file=sys.stderr)
        return 130
    if summary.failures:
        return 1 if num_images else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
