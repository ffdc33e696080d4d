"""Prediction by one trained model: in plain PyTorch, in this package's, in bfloat16, and as OpenVINO graphs."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence

import torch

from benchmarks.exported import build_predictors
from benchmarks.timing import median, time_in_turn
from maskrcnn_plus.apps.export_model.data import choose_evenly, folder_images
from maskrcnn_plus.checkpoints.description import choose_config
from maskrcnn_plus.inference.predictor import Predictor

IMAGES = 8


def benchmark_precisions(
    weights: str,
    folder: str,
    rounds: int,
    precisions: Sequence[str],
    diameter: float | None = None,
    processor_time: bool = False,
) -> None:
    """Print a table of milliseconds an image, from its file to its masks, and of the objects that were found.

    Args:
        weights: a checkpoint that knows its config, or the name of a shipped model.
        folder: of images, of which eight are taken; int8 is calibrated on them, on which its speed does not depend.
        rounds: runs of each over all images.
        precisions: of `exported.PRECISIONS`.
        diameter: of the objects, pixels, for a model that would estimate it.
        processor_time: count the time of the processor, of all threads, instead of the clock's.
    """
    config, paths = choose_config(None, weights), choose_evenly(folder_images(folder), IMAGES)
    options = {"device": "cpu", "diameter": diameter}
    predictors = {
        "float32": Predictor(config, weights, **options),
        "layers as they were trained": Predictor(config, weights, optimize=False, **options),
    }
    with tempfile.TemporaryDirectory() as place:
        predictors |= build_predictors(config, weights, place, paths, precisions, diameter=diameter)
        found = [sum(len(predictor.predict(path)) for path in paths) for predictor in predictors.values()]
        functions = [lambda p=predictor: [p.predict(path) for path in paths] for predictor in predictors.values()]
        watch = time.process_time if processor_time else time.perf_counter
        times = [[each / len(paths) for each in record] for record in time_in_turn(functions, rounds, watch)]
    middle = [statistics.median(record) for record in times]
    clock = " of the processor" if processor_time else ""
    print(f"{len(paths)} images, {weights}, {torch.get_num_threads()} threads, {rounds} rounds\n")
    print(f"| | an image, ms{clock} | times float32 | objects |\n|---|---|---|---|")
    for name, record, value, objects in zip(predictors, times, middle, found, strict=True):
        print(f"| {name} | {median(record).strip()} | {value / middle[0]:.2f} | {objects} |")
