#!/usr/bin/env python3
"""Segment instances in image files with a trained model.

Examples:
    python tools/predict.py --config-file configs/nuclei/mask_rcnn_lite0_fpn.py \\
        --weights output/nuclei/model_best.pth --input slides/ more/*.tif --output predictions --report
    python tools/predict.py --config-file nuclei/mask_rcnn_lite0_fpn --weights model_best.pth --input "slides/*.png" \\
        --output predictions --score-threshold 0.3 --opts dataset.scale=2.0

Below the output folder: overlays/NAME.png, labels/NAME.png (16-bit, value k = k-th object), predictions.json (COCO
results) and, with --report, report.html. Exit code: 0 all predicted, 1 some files failed, 2 nothing could be started
or written, 130 interrupted (what was done is kept).
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import signal
import sys
from collections.abc import Sequence
from datetime import datetime

from omegaconf import OmegaConf
from tqdm import tqdm

from maskrcnn_plus.config import get_config
from maskrcnn_plus.data.images import IMAGE_SUFFIXES
from maskrcnn_plus.inference.overlay import encode_masks, read_display_image
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.inference.report import MAX_PICTURES, ReportEntry, report_entry, write_report
from maskrcnn_plus.inference.writers import PredictionWriter
from maskrcnn_plus.overrides import apply_overrides

FOLDER_SUFFIXES = (*IMAGE_SUFFIXES, ".webp")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="a LazyConfig file, or the name of a shipped config")
    parser.add_argument("--weights", required=True, help="checkpoint of a model of this config")
    parser.add_argument("--input", required=True, nargs="+", help="image files, folders and glob patterns")
    parser.add_argument("--output", required=True, help="folder for the results")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="least score of an object (default 0.5)")
    parser.add_argument("--recursive", action="store_true", help="take images in sub-folders of input folders too")
    parser.add_argument("--report", action="store_true", help="write report.html, images beside their predictions")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the config's train.device)")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the config")
    return parser.parse_args(argv)


def list_inputs(inputs: Sequence[str], recursive: bool, output: str) -> list[str]:
    """Image files of all inputs without repetition: folders and patterns expanded, in natural order (2 before 10).

    Paths with "://" are for Detectron2's path manager and stay as they are. What an earlier run left in the folders
    overlays and labels of `output` is not an image of an input folder.

    Raises:
        ValueError: an input that gives no file.
    """
    results = tuple(os.path.join(os.path.abspath(output), folder, "") for folder in ("overlays", "labels"))
    paths: list[str] = []
    for entry in inputs:
        if os.path.isdir(entry):
            pattern = os.path.join(glob.escape(entry), "**" if recursive else "", "*")
            found = [path for path in glob.glob(pattern, recursive=recursive) if os.path.isfile(path)]
            found = [path for path in found if path.lower().endswith(FOLDER_SUFFIXES)]
            found = [path for path in found if not os.path.abspath(path).startswith(results)]
            problem = f"no image ({' '.join(FOLDER_SUFFIXES)}) in the folder; --recursive looks into its sub-folders"
        elif "://" in entry or os.path.exists(entry):
            found, problem = [entry], ""
        else:
            found = [path for path in glob.glob(entry, recursive=recursive) if os.path.isfile(path)]
            problem = "no such file or folder, and no file matches it as a pattern"
        if not found:
            raise ValueError(f"--input {entry}: {problem}")
        paths += sorted(found, key=_natural)
    unique = {path if "://" in path else os.path.abspath(path): path for path in paths}
    return list(unique.values())


def _natural(path: str) -> list[tuple[bool, int, str]]:
    parts = re.split(r"([0-9]+)", path)
    return [(k % 2 == 0, int(part) if k % 2 else 0, part) for k, part in enumerate(parts)]


def predict_files(
    paths: Sequence[str], predictor: Predictor, writer: PredictionWriter, channels: int, with_report: bool
) -> tuple[list[ReportEntry], list[tuple[str, str]], bool]:
    """Predict and write all files; returns the report's entries, (file, reason) of failures, and "interrupted"."""
    entries: list[ReportEntry] = []
    failures: list[tuple[str, str]] = []
    try:
        for path in tqdm(paths, unit="image", disable=None):
            try:
                image = read_display_image(path, channels)
                instances = encode_masks(predictor(path))
            except (ValueError, OSError, RuntimeError, MemoryError) as error:  # the last two: an image too large
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                failures.append((path, reason.removeprefix(f"{path}: ")))
                tqdm.write(f"predict: {path}: {failures[-1][1]}", file=sys.stderr)
                continue
            overlay = writer.write(path, image, instances)
            if with_report:
                pictures = (image, overlay) if len(entries) < MAX_PICTURES else ()
                entries.append(report_entry(path, instances, *pictures))
    except KeyboardInterrupt:
        return entries, failures, True
    return entries, failures, False


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        paths = list_inputs(args.input, args.recursive, args.output)
        cfg = apply_overrides(get_config(args.config_file), args.opts)
        predictor = Predictor(cfg, args.weights, args.device, args.score_threshold)
        channels = OmegaConf.select(cfg, "dataloader.test.mapper.channels", default=3)
        with PredictionWriter(args.output, predictor.class_names) as writer:
            entries, failures, interrupted = predict_files(paths, predictor, writer, channels, args.report)
        if args.report:
            details = {
                "Config": args.config_file,
                "Weights": args.weights,
                "Score threshold": f"{args.score_threshold:g}",
                "Date": datetime.now().strftime("%Y-%m-%d %H:%M"),
                **({"Changes": " ".join(args.opts)} if args.opts else {}),
            }
            title = "Predictions" + (f" (interrupted after {writer.num_images} images)" if interrupted else "")
            report = os.path.join(args.output, "report.html")
            write_report(report, entries, title, details=details, failures=failures, class_names=predictor.class_names)
    except (ValueError, KeyError, OSError) as error:
        print(f"predict: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("predict: interrupted", file=sys.stderr)
        return 130
    print(
        f"{writer.num_images} images, {len(writer.results)} objects, {len(failures)} failed; results in {args.output}"
    )
    if interrupted:
        print(f"predict: interrupted, {len(paths) - writer.num_images - len(failures)} images left", file=sys.stderr)
        return 130
    return 1 if failures else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job scheduler's stop keeps results as Ctrl-C does
    sys.exit(main())
