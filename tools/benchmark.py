#!/usr/bin/env python3
"""Speed, side by side in one process: what is compared is run in turn, and reported are medians.

Examples:
    python tools/benchmark.py roi_align --device cuda
    python tools/benchmark.py masks
    python tools/benchmark.py cost --output cost.png
    python tools/benchmark.py training_step --config-file nuclei/mask_rcnn_lite0_fpn dataset.root=datasets/nuclei
    python tools/benchmark.py inference --images datasets/coco/val2017 --size 800 1216
    python tools/benchmark.py inference --images datasets/coco/val2017 --precision openvino int8 --threads 1
    python tools/benchmark.py inference --weights model_best.pth --images datasets/mine --precision bfloat16 int8
    python tools/benchmark.py backbones --names resnet50,convnext_tiny --size 800 1216
    python tools/benchmark.py tiling --config-file nuclei/mask_rcnn_lite0_fpn --weights model_best.pth \\
        dataset.root=datasets/nuclei
    python tools/benchmark.py tracking --rounds 3
    python tools/benchmark.py stream --config-file coco/mask_rcnn_mobile --images datasets/coco/val2017 --size 480 640
    python tools/benchmark.py cluster --count 1000000 --rate 2.5
    python tools/benchmark.py auto_scale --weights model_best.pth --images datasets/nuclei,datasets/other
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tuning import shorten_thread_waits

shorten_thread_waits()  # before PyTorch is loaded

# isort: split

import torch
from benchmarks.auto_scale import benchmark_auto_scale
from benchmarks.backbones import NAMES, benchmark_backbones
from benchmarks.exported import PRECISIONS
from benchmarks.films import benchmark_stream, benchmark_tracking
from benchmarks.inference import benchmark_inference
from benchmarks.masks import benchmark_masks
from benchmarks.models import benchmark_training_step
from benchmarks.precisions import benchmark_precisions
from benchmarks.roi_align import benchmark_cost, benchmark_roi_align
from benchmarks.tiling import benchmark_tiling

from maskrcnn_plus.allocator import keep_freed_memory
from maskrcnn_plus.config import load_config
from maskrcnn_plus.device import usable_device
from maskrcnn_plus.errors import UserError, run_tool
from maskrcnn_plus.inference.predictor import Predictor


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what",
        choices=(
            *("roi_align", "cost", "masks", "training_step", "inference", "backbones", "tiling", "auto_scale"),
            *("tracking", "stream", "cluster"),
        ),
    )
    parser.add_argument("--output", default="roi_align_cost.png", help="picture that cost draws")
    parser.add_argument(
        "--config-file",
        default="demo/mask_rcnn_lite0_fpn",
        help="for training_step, tiling and backbones, which exchanges its backbone (default: %(default)s)",
    )
    parser.add_argument("--names", default=",".join(NAMES), help="timm's, for backbones (default: %(default)s)")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(800, 1216),
        metavar=("HEIGHT", "WIDTH"),
        help="of the image for inference, backbones and stream (default: 800 1216)",
    )
    parser.add_argument(
        "--images",
        default="datasets/coco/val2017",
        help="photographs for inference and stream (default: %(default)s); folders of annotated images for auto_scale",
    )
    parser.add_argument(
        "--precision", nargs="+", default=[], choices=PRECISIONS, help="further ones of our model, for inference"
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="for inference, where other programs run too: time of the processor, of all threads, not of the clock",
    )
    parser.add_argument(
        "--weights",
        help="checkpoint for auto_scale, for inference instead of a comparison with torchvision, and for tiling and "
        "stream (default: random, as the config builds the model)",
    )
    parser.add_argument("--diameter", type=float, help="of the objects in pixels, for inference with --weights")
    parser.add_argument(
        "--factors", default="0.3,0.5,1,2,3,4", help="of the size of images for auto_scale (default: %(default)s)"
    )
    parser.add_argument(
        "--count", type=int, help="of the images of a folder for auto_scale (default: all), of the job for cluster"
    )
    parser.add_argument("--rate", type=float, default=1.0, help="images a second of a core, for cluster (default: 1)")
    parser.add_argument("--objects", type=int, default=50, help="of an image, for cluster (default: 50)")
    parser.add_argument("--megabytes", type=float, default=1.0, help="of an image, for cluster (default: 1)")
    parser.add_argument(
        "--sides", default="1500,3000,6000", help="of the mosaics for tiling, pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=7,
        help="runs of each (default 7); films of tracking, hundreds of frames of stream",
    )
    parser.add_argument("--device", default="cpu", help="for roi_align, training_step and inference (default: cpu)")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: its own choice)")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the config")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_tool("benchmark", lambda: benchmark(args), overrides=args.opts)


def benchmark(args: argparse.Namespace) -> None:
    """Measure what the arguments name."""
    keep_freed_memory()  # as the training does; here for all sides
    if args.threads:
        torch.set_num_threads(args.threads)
    device = usable_device(args.device)
    if device.type == "cuda":
        print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name(device)}")
    else:
        print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    if args.what == "roi_align":
        benchmark_roi_align(args.rounds, device)
        return
    if args.what == "tracking":
        benchmark_tracking(args.rounds)
        return
    if args.what == "masks":
        benchmark_masks(args.rounds)
        return
    if args.what == "cost":
        benchmark_cost(args.rounds, args.output)
        return
    if args.what == "inference":
        options = {"precisions": args.precision, "processor_time": args.processor_time}
        if args.weights:
            benchmark_precisions(args.weights, args.images, args.rounds, diameter=args.diameter, **options)
            return
        benchmark_inference(args.images, tuple(args.size), args.rounds, device, **options)
        return
    if args.what == "cluster":
        try:
            from benchmarks.cluster import benchmark_cluster
        except ModuleNotFoundError as error:
            raise UserError(f"{error.name} is missing: pip install 'maskrcnn_plus[cluster]'") from error
        benchmark_cluster(args.count or 1_000_000, args.rate, args.objects, args.megabytes)
        return
    if args.what == "auto_scale":
        predictor = Predictor(args.weights or "", device=args.device)
        factors = [float(factor) for factor in args.factors.split(",")]
        benchmark_auto_scale(predictor, args.images.split(","), factors, args.count)
        return
    cfg = load_config(args.config_file, args.opts)
    if args.what == "training_step":
        benchmark_training_step(cfg, args.rounds, device)
    elif args.what == "stream":
        benchmark_stream(cfg, args.weights, args.images, tuple(args.size), args.rounds)
    elif args.what == "tiling":
        benchmark_tiling(cfg, args.weights, [int(side) for side in args.sides.split(",")])
    else:
        benchmark_backbones(cfg, args.names.split(","), tuple(args.size), args.rounds)


if __name__ == "__main__":
    sys.exit(main())
