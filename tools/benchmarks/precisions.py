"""Prediction by one trained model: in plain PyTorch, in this package's, in bfloat16, and as OpenVINO graphs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import torch

from benchmarks.exported import build_predictors
from benchmarks.timing import tabulate_predictions
from maskrcnn_plus.apps.export_model.data import choose_evenly, folder_images
from maskrcnn_plus.checkpoints.choice import choose_config
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
        predicts = {name: predictor.predict for name, predictor in predictors.items()}
        objects = [sum(len(predict(path)) for path in paths) for predict in predicts.values()]
        print(f"{len(paths)} images, {weights}, {torch.get_num_threads()} threads, {rounds} rounds")
        tabulate_predictions(predicts, paths, rounds, processor_time, objects)
