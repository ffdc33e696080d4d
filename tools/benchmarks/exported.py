"""The model of `benchmark.py inference` in other precisions and as OpenVINO graphs, with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from maskrcnn_plus.checkpoints.description import describe
from maskrcnn_plus.device import saturates
from maskrcnn_plus.export.hybrid import HybridModel
from maskrcnn_plus.export.quantization import Calibration, quantize
from maskrcnn_plus.inference.predictor import Predictor

__all__ = ["PRECISIONS", "build_predictors"]

PRECISIONS = ("bfloat16", "openvino", "openvino-bfloat16", "int8")


def build_predictors(
    config: DictConfig,
    weights: str,
    folder: str,
    images: Sequence[np.ndarray | str],
    precisions: Sequence[str],
    **options: float | None,
) -> dict[str, Predictor]:
    """Predictors by name.

    Args:
        config, weights: of the model.
        folder: for the exported models.
        images: [H, W, 3] or files, that "int8" is calibrated on: its speed does not depend on them.
        precisions: of `PRECISIONS`.
        options: of each `Predictor`.
    """
    found = {}
    if "bfloat16" in precisions:
        found["bfloat16"] = Predictor(config, weights, device="cpu", precision="bfloat16", **options)
    exported = [name for name in precisions if name != "bfloat16"]
    if not exported:
        return found
    predictor = Predictor(config, weights, device="cpu", optimize=False, **options)
    hybrid = HybridModel(predictor, describe(config, list(config.dataset.thing_classes)))
    for name in exported:
        place, quantized, half_range = Path(folder) / name, {}, name == "int8" and saturates()
        if name == "int8":
            calibration = Calibration(predictor, images, hybrid.candidates)
            quantized = {
                part: quantize(graph, calibration.of(part), half_range=half_range)
                for part, graph in hybrid.graphs.items()
                if part in calibration
            }
        hybrid.write(place, "int8" if quantized else "fp32", quantized, {"safe_range": half_range})
        precision = "bfloat16" if name == "openvino-bfloat16" else None
        found[name] = Predictor(config, str(place), precision=precision, **options)
    return found
