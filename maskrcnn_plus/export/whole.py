"""A `Predictor` -> a folder with one graph from image to objects, for ONNX Runtime or OpenVINO, and its `model.json`.

The graph is a TorchScript trace of `WholeGraph`. PyTorch's newer exporter, by `torch.export`, has no symbolic shape for
what non-maximum suppression leaves, and takes several times as long.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from maskrcnn_plus.errors import UserError
from maskrcnn_plus.export.describe import describe_model
from maskrcnn_plus.export.graph import WholeGraph
from maskrcnn_plus.inference.mask_head import SelectiveMaskHead
from maskrcnn_plus.inference.optimize import fold_batch_norms
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.model_folder import FILE_NAME, write_model_folder
from maskrcnn_plus.ops.winograd import WinogradConv2d
from maskrcnn_plus.runtime.graphs import OUTPUTS, Graph, load_graph

OPSET = 18
PRECISIONS = {"onnx": ("fp32",), "openvino": ("fp32", "fp16")}
_PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}
# Height and width of images of noise; the last has few objects.
_TRACED, _CHECKED = (96, 160), ((160, 96), (130, 230), (24, 20))


def export_whole(predictor: Predictor, folder: str | os.PathLike, to: str = "onnx", precision: str = "fp32") -> Path:
    """Export a model.

    Args:
        predictor: made with `optimize=False`; it stays as it is.
        folder: made if it is not there; an export that it holds is replaced.
        to: "onnx" writes `model.onnx`, "openvino" `model.xml` and `model.bin`.
        precision: of the weights: "fp32" or, for OpenVINO, "fp16".

    Returns:
        The folder.

    Raises:
        UserError: a part of the model that cannot be exported, by its config key; a package is missing; or the graph
            finds other objects than the model on images of other sizes than the traced one.
        OSError: a file cannot be written.
    """
    if precision not in PRECISIONS.get(to, ()):
        known = ", ".join(f"{name} in {' or '.join(each)}" for name, each in PRECISIONS.items())
        raise UserError(f"a whole graph for {to} in {precision} is not made; there are {known}.")
    if any(isinstance(each, WinogradConv2d | SelectiveMaskHead) for each in predictor.model.modules()):
        raise UserError("an optimised model cannot be exported: make the Predictor with optimize=False.")
    description = describe_model(predictor, "whole", precision, packages=_import(to))
    model = copy.deepcopy(predictor.model).cpu().float().eval().requires_grad_(False)
    fold_batch_norms(model)
    graph = WholeGraph(model, description.postprocessing.max_objects).eval()

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).unlink(missing_ok=True)  # what is written now is no model until it is described
    with tempfile.TemporaryDirectory(prefix=".export", dir=folder) as temporary:
        traced = Path(temporary) / "model.onnx"
        trace_graph(graph, traced)
        files = _convert(traced, precision) if to == "openvino" else ["model.onnx"]
        _check(graph, load_graph(traced.with_name(files[0])))
        for name in files:
            os.replace(traced.with_name(name), folder / name)
    write_model_folder(folder, description, files)
    return folder


def trace_graph(graph: WholeGraph, path: Path) -> None:
    """Write a graph as ONNX, with an input of any height and width.

    Raises:
        UserError: an operator of the model that ONNX does not know; the message names the part that calls it.
    """
    names = [name for name in OUTPUTS if name != "masks" or graph.parts.mask_head is not None]
    image = _make_noise(graph.model, *_TRACED)
    try:
        with warnings.catch_warnings(), torch.no_grad(), _without_output():
            warnings.simplefilter("ignore")  # of values that a trace holds constant, which `_check` sees
            torch.onnx.export(
                graph,
                (image,),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=names,
                dynamic_axes={"image": {2: "height", 3: "width"}},
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0][:300]
        raise UserError(f"{_find_place(graph, image, reason)} cannot be exported: {reason}") from error


@contextlib.contextmanager
def _without_output() -> Iterator[None]:
    """Nothing reaches the standard output of the process, where PyTorch's C++ prints the whole graph after an error."""
    sys.stdout.flush()
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)


def _find_place(graph: WholeGraph, image: Tensor, reason: str) -> str:
    """Config key and class of the module that calls the operator that an error names."""
    operator = re.search(r"aten::\w+", reason)
    if operator is None:
        return "the model"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(graph, image, check_trace=False).inlined_graph
    nodes = traced.findAllNodes(operator[0], recurse=True)
    key = nodes[0].scopeName().rpartition("/")[2].removeprefix("__module.") if nodes else ""
    return f"{key} ({type(graph.get_submodule(key)).__name__})" if key else "the model"


def _convert(path: Path, precision: str) -> list[str]:
    import openvino

    converted = openvino.Core().read_model(path)  # which, unlike convert_model, sends no reports of its use
    openvino.save_model(converted, path.with_name("model.xml"), compress_to_fp16=precision == "fp16")
    return ["model.xml", "model.bin"]


@torch.no_grad()
def _check(graph: WholeGraph, exported: Graph) -> None:
    """Compare with the model on images of other sizes than that of the trace, which may have kept a size.

    On noise, and on the scale of a mistake: a few boxes of nearly equal scores may change places by rounding.
    """
    for size in _CHECKED:
        image = _make_noise(graph.model, *size)
        boxes, scores, _, *_, count = graph(image)
        try:
            found = {name: torch.from_numpy(value) for name, value in exported(image.numpy()).items()}
        except Exception as error:  # of both runtimes' own classes
            reason = str(error).strip().partition("\n")[0][:300]
            raise UserError(
                f"the exported graph fails on an image of {size[1]} x {size[0]} pixels: {reason}"
            ) from error
        number = int(found["count"])
        near = (found["boxes"][None, :number] - boxes[: int(count), None]).abs().amax(2) < 2  # [N, M]
        near &= (found["scores"][None, :number] - scores[: int(count), None]).abs() < 0.05
        if near.any(1).sum() < 0.75 * max(int(count), number) - 2:
            raise UserError(
                f"the exported graph finds {number} objects on an image of {size[1]} x {size[0]} pixels, of which "
                f"{int(near.any(1).sum())} are among the {int(count)} of the model: a part of it cannot be traced for "
                f"all sizes (model.backbone is a {type(graph.model.backbone).__name__})."
            )


def _make_noise(model: nn.Module, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    channels = len(model.pixel_mean)
    coarse = torch.rand(1, channels, height // 8, width // 8, generator=generator)
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear") * 255


def _import(to: str) -> tuple[str, ...]:
    """The packages that an export needs."""
    for package in _PACKAGES[to]:
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            raise UserError(
                f"an export needs the package {package}, which is not installed: pip install 'maskrcnn_plus[export]'"
            ) from error
    return _PACKAGES[to]
