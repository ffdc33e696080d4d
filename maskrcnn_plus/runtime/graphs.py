"""A graph's file -> a function from an image to its outputs, by the runtime that takes such files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from maskrcnn_plus.errors import UserError, first_line
from maskrcnn_plus.model_folder import ModelFolderError

Graph = Callable[[np.ndarray], dict[str, np.ndarray]]


OUTPUTS = ("boxes", "scores", "classes", "masks", "count")
"""Names of the outputs; there are no masks of a model without a mask head."""

RUNTIMES = ("onnxruntime", "openvino")


def load_graph(path: Path, threads: int | None = None, runtime: str | None = None) -> Graph:
    """Load a graph on the CPU.

    Args:
        path: an ONNX file (.onnx) or an OpenVINO IR (.xml).
        threads: of the runtime; None leaves the number to it.
        runtime: one of `RUNTIMES`; None takes ONNX Runtime for ONNX, which OpenVINO reads as well.

    Returns:
        A function of the input float32 [1, C, h, w], which gives the outputs by name.

    Raises:
        UserError: the runtime is not installed.
        ModelFolderError: the runtime cannot load the file.
    """
    package = runtime or ("openvino" if path.suffix == ".xml" else "onnxruntime")
    load = {"onnxruntime": _load_onnx, "openvino": _load_openvino}[package]
    try:
        return load(path, threads)
    except ModuleNotFoundError as error:
        raise UserError(f"{path} needs the package {package}, which is not installed: pip install {package}") from error
    except Exception as error:  # of both packages' own classes
        reason = (str(error).strip() or first_line(error)).splitlines()[-1][:300]  # OpenVINO begins with where it was
        raise ModelFolderError(
            f"{package} cannot load {path}: {reason} It is damaged, or made for another version: update {package}, or "
            "export the model again."
        ) from error


def _load_onnx(path: Path, threads: int | None) -> Graph:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    (entry,) = (each.name for each in session.get_inputs())
    return lambda image: dict(zip(names, session.run(names, {entry: image}), strict=True))


def _load_openvino(path: Path, threads: int | None) -> Graph:
    import openvino

    # Set, since the default on CPUs with bfloat16 is bfloat16.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    # One may have several names: what it is in ONNX, and what computes it.
    names = [next((name for name in OUTPUTS if name in each.names), each.any_name) for each in compiled.outputs]
    return lambda image: dict(zip(names, map(np.copy, compiled(image).values()), strict=True))
