#!/usr/bin/env python3
"""Sort what a trained model gets wrong on a config's test set, and draw the images with the most errors.

Example:
    python tools/draw_errors.py --config-file nuclei/mask_rcnn_lite0_fpn --weights output/mine/model_best.pth \\
        --output output/mine/errors dataset.root=datasets/mine

Objects are found (mask IoU of --iou and more), missed, merged with a neighbour, split, poorly outlined or of the wrong
class; detections are the same, or spurious, or a second one of an object. The counts are printed; NAME.png shows what
is wrong in an image: objects filled, detections outlined, and what is right in thin grey.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from tuning import keep_memory_on_cpu, shorten_thread_waits

shorten_thread_waits()  # before PyTorch is loaded

# isort: split

import cv2
import numpy as np
import supervision as sv
from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from maskrcnn_plus.apps.predict_files.inputs import list_inputs
from maskrcnn_plus.apps.predict_files.run import explain_no_objects
from maskrcnn_plus.arguments import output_folder
from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.config import get_score_threshold, load_config
from maskrcnn_plus.data import resolve_classes
from maskrcnn_plus.data.channels import get_rule
from maskrcnn_plus.data.images import read_image
from maskrcnn_plus.errors import run_tool
from maskrcnn_plus.evaluation.errors import DETECTION_KINDS, FOUND, IGNORED, OBJECT_KINDS, sort_errors
from maskrcnn_plus.evaluation.ground_truth import ground_truth_rles, load_ground_truth
from maskrcnn_plus.evaluation.matching import find_in_crowds, visible_masks
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.results.outlines import rle_polygons
from maskrcnn_plus.results.overlay import display_image

COLOURS = {
    "missed": "#ff5964",
    "spurious": "#ff5964",
    "merged": "#18c5f4",
    "split": "#5be37d",
    "poor outline": "#ffd23f",
    "wrong class": "#b98cff",
    "doubled": "#ff9233",
    FOUND: "#8c8c8c",
}
LEGEND_HEIGHT = 26  # pixels


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="a LazyConfig file, or the name of a shipped config")
    parser.add_argument("--weights", required=True, help="checkpoint of a model of this config")
    parser.add_argument("--output", required=True, type=output_folder, help="folder for the pictures")
    parser.add_argument("--images", type=int, default=12, help="to draw, those with the most errors (default 12)")
    parser.add_argument("--iou", type=float, default=0.5, help="from which on an object is found (default 0.5)")
    parser.add_argument(
        "--score-threshold", type=float, help="least score of a detection (default: the config's, or 0.5)"
    )
    parser.add_argument("--zoom", type=int, default=2, help="pixels of a picture for one of the image (default 2)")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the config; at the end")
    args = parser.parse_intermixed_args(argv)
    if not 0 < args.iou <= 1 or args.zoom < 1 or args.images < 0:
        parser.error("--iou must be in (0, 1], --zoom at least 1, --images not negative")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_tool("draw_errors", lambda: draw_errors(args), overrides=args.opts)


def draw_errors(args: argparse.Namespace) -> None:
    """Predict, count and draw as the arguments say."""
    cfg = load_config(args.config_file, args.opts)
    threshold = get_score_threshold(cfg, args.score_threshold)
    predictor = Predictor(cfg, args.weights, score_threshold=threshold)
    keep_memory_on_cpu(predictor.device)
    resolve_classes(cfg, predictor.classes, ["test"])
    images = sorted_images(predictor, cfg, args.iou)
    print(table(images))
    if not any(image["detections"] for image in images):
        print(f"draw_errors: {explain_no_objects(predictor, len(images))}", file=sys.stderr)
    names = {file.path: file.name for file in list_inputs([image["file_name"] for image in images])}
    worst = sorted(images, key=lambda image: sum(kind != FOUND for kind in image["detection_kinds"] + image["kinds"]))
    for image in worst[max(len(worst) - args.images, 0) :]:
        picture = draw(image, args.zoom, predictor)
        args.output.mkdir(parents=True, exist_ok=True)
        path = args.output / f"{names[image['file_name']]}.png"
        write_atomically(path, cv2.imencode(".png", picture)[1].tobytes())


def sorted_images(predictor: Predictor, cfg: DictConfig, threshold: float) -> list[dict]:
    """Predict the test set as `MatchingEvaluator` judges it; each image with its masks and their kinds."""
    name = instantiate(cfg.dataloader.test.dataset.names)
    images = []
    truth = load_ground_truth(
        name if isinstance(name, str) else name[0], on_error=OmegaConf.select(cfg, "dataset.on_error")
    )
    for entry in tqdm(truth.values(), unit="image"):
        annotations = entry.get("annotations", [])
        crowd = [bool(annotation.get("iscrowd", 0)) for annotation in annotations]
        judged = [index for index, is_crowd in enumerate(crowd) if not is_crowd]
        rles, categories = ground_truth_rles(entry), [annotation["category_id"] for annotation in annotations]
        truth, classes = [rles[index] for index in judged], [categories[index] for index in judged]
        found = predictor.predict(entry["file_name"])
        detections, visible = visible_masks(
            list(found.pred_masks_rle), found.scores.tolist(), entry["height"], entry["width"]
        )
        found_classes = found.pred_classes[visible].tolist()
        in_crowds = find_in_crowds(detections, found_classes, rles, categories, crowd)
        detection_kinds, kinds = sort_errors(detections, found_classes, truth, classes, threshold, in_crowds)
        counted = [index for index, kind in enumerate(detection_kinds) if kind != IGNORED]
        images.append(
            {
                "file_name": entry["file_name"],
                "detections": [detections[index] for index in counted],
                "detection_kinds": [detection_kinds[index] for index in counted],
                "objects": truth,
                "kinds": kinds,
            }
        )
    return images


def table(images: Sequence[dict]) -> str:
    """How many of the objects and detections of all images are of each kind, in Markdown."""
    lines = ["| | " + " | ".join(COLOURS) + " |", "|---|" + "---|" * len(COLOURS)]
    for title, key, kinds in (("objects", "kinds", OBJECT_KINDS), ("detections", "detection_kinds", DETECTION_KINDS)):
        counts = Counter(kind for image in images for kind in image[key])
        lines.append(f"| {title} | " + " | ".join(str(counts[k]) if k in kinds else "" for k in COLOURS) + " |")
    return "\n".join(lines)


def draw(image: dict, zoom: int, predictor: Predictor) -> np.ndarray:
    """BGR picture [zoom H + legend, zoom W, 3] of an image of H x W pixels."""
    name, channels = image["file_name"], getattr(predictor.mapper, "channels", 3)
    pixels = read_image(name, get_rule(predictor.mapper), getattr(predictor.mapper, "percentiles", None))
    shown = display_image(pixels, channels, name)
    canvas = cv2.cvtColor(cv2.resize(shown, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC), cv2.COLOR_RGB2BGR)
    for rles, kinds, is_object in (
        (image["objects"], image["kinds"], True),
        (image["detections"], image["detection_kinds"], False),
    ):
        for polygons, kind in zip(rle_polygons(rles), kinds, strict=True):
            for polygon in polygons:
                ring, colour = polygon[0] * zoom, sv.Color.from_hex(COLOURS[kind])
                if is_object and kind != FOUND:
                    canvas = sv.draw_filled_polygon(canvas, ring, colour, opacity=0.45)
                elif kind != FOUND or is_object:
                    canvas = sv.draw_polygon(canvas, ring, colour, thickness=1 if is_object else 2)
    return np.vstack([_legend(canvas.shape[1], image), canvas])


def _legend(width: int, image: dict) -> np.ndarray:
    """A strip [LEGEND_HEIGHT, width, 3] with the kinds in their colours and how many there are."""
    kinds = image["kinds"] + [kind for kind in image["detection_kinds"] if kind not in OBJECT_KINDS]
    strip = np.zeros((LEGEND_HEIGHT, width, 3), dtype=np.uint8)
    x = 6
    for kind, colour in COLOURS.items():
        if kind in kinds:
            text = f"{kind} {kinds.count(kind)}"
            cv2.putText(strip, text, (x, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, sv.Color.from_hex(colour).as_bgr(), 1)
            x += cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)[0][0] + 14
    return strip


if __name__ == "__main__":
    sys.exit(main())
