"""Graphs in 8 bits by NNCF's post-training quantisation, calibrated on images of the user's.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018):
weights and activations as 8-bit integers with a scale, which a few images show.

Shape shorthand: R RoIs.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from maskrcnn_plus.errors import UserError
from maskrcnn_plus.export.hybrid_parts import Candidate
from maskrcnn_plus.inference.examples import AnyImage, make_example
from maskrcnn_plus.inference.openvino_graph import to_arrays
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.mask_rcnn import without_dense_masks

__all__ = ["Calibration", "depthwise_layers", "end_layers", "quantize"]

_ROIS = 32  # of an image, for each head
_WEIGHTED = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")


class Calibration:
    """Inputs of the graphs of a model for some images.

    Those of the body are made when they are asked for; of RoIs, some of each image are kept.
    """

    def __init__(self, predictor: Predictor, images: Sequence[AnyImage], candidates: Mapping[str, Candidate]) -> None:
        """Predict the images with the model in PyTorch.

        Args:
            predictor: the model.
            images: paths or arrays, one at least.
            candidates: the parts by the names of their modules.

        Raises:
            ValueError, OSError: an image cannot be used; the message names it.
        """
        self.predictor, self.images = predictor, list(images)
        self._rois: dict[str, list[list[np.ndarray]]] = {
            name: [] for name, each in candidates.items() if each.part.kind != "body"
        }
        generator = torch.Generator().manual_seed(0)

        def keep(name: str, count: int):
            def hook(_: Any, inputs: tuple) -> None:
                if rows := len(inputs[0]):
                    chosen = torch.randperm(rows, generator=generator)[:_ROIS]
                    self._rois[name].append(to_arrays([each[chosen] for each in inputs[:count]]))

            return hook

        hooks = [
            candidates[name].seen_by.register_forward_pre_hook(keep(name, candidates[name].num_inputs))
            for name in self._rois
        ]
        try:
            for image in self.images if self._rois else ():
                with torch.inference_mode(), without_dense_masks(predictor.model):
                    predictor.model([make_example(predictor.mapper, image, "an image")])
        finally:
            for hook in hooks:
                hook.remove()

    def of(self, name: str) -> Iterable[list[np.ndarray]]:
        """Inputs of the graph of a module, image by image, to go through as often as is needed."""
        return _Again(self, name)

    def _inputs(self, name: str) -> Iterator[list[np.ndarray]]:
        if name in self._rois:
            yield from self._rois[name]
            return
        for image in self.images:
            example = make_example(self.predictor.mapper, image, "an image")
            with torch.no_grad():
                yield to_arrays([self.predictor.model.preprocess_image([example]).tensor])

    def __contains__(self, name: str) -> bool:
        """Whether there are inputs of a module."""
        return bool(self._rois.get(name, self.images))


class _Again:
    def __init__(self, calibration: Calibration, name: str) -> None:
        self.calibration, self.name = calibration, name

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        return self.calibration._inputs(self.name)


def quantize(graph: Any, inputs: Iterable[list[np.ndarray]], *, half_range: bool, keep: Sequence[str] = ()) -> Any:
    """A graph in 8 bits, but for its `depthwise_layers`.

    Args:
        graph: an `openvino.Model` in float32; it stays as it is.
        inputs: an iterable, that can be gone through again, of the arrays of its inputs.
        half_range: weights keep to half of the range of 8 bits, for CPUs whose sums saturate.
        keep: names of further layers that stay in float32.

    Raises:
        UserError: NNCF is not installed.
    """
    nncf = _import_nncf()
    kinds = {operator.get_type_name() for operator in graph.get_ops()}
    transformer = {"Softmax", "ScaledDotProductAttention"} & kinds
    overflow = nncf.OverflowFix.ENABLE if half_range else nncf.OverflowFix.DISABLE
    count = sum(1 for _ in inputs)
    names = [*keep, *depthwise_layers(graph)]
    return nncf.quantize(
        graph.clone(),
        nncf.Dataset(inputs),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=count,
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        ignored_scope=nncf.IgnoredScope(names=names) if names else None,
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=overflow),
    )


def end_layers(graph: Any) -> list[str]:
    """Names of the layers with weights that first see a graph's inputs and that last come before its outputs."""
    first = [operator.get_friendly_name() for operator in graph.get_ordered_ops() if _has_weights(operator)][:1]
    last = _nearest_layers(graph.get_results(), lambda each: [value.get_node() for value in each.input_values()])
    return first + sorted(last - set(first))


def depthwise_layers(graph: Any) -> list[str]:
    """Names of the depthwise convolutions of a graph and of the layers that read their maps, up to a normalisation.

    The channels of these maps have ranges of their own, and 8 bits have one scale for all: most of the error of
    quantised mobile networks is from there, and little of their time (Nagel et al., "Data-Free Quantization Through
    Weight Equalization and Bias Correction", 2019, section 3).
    """
    depthwise = [
        operator
        for operator in graph.get_ordered_ops()
        if operator.get_type_name() == "GroupConvolution" and operator.input_value(1).get_shape()[2] == 1
    ]

    def readers(operator: Any) -> list[Any]:
        inputs = [each for value in operator.outputs() for each in value.get_target_inputs()]
        return [each.get_node() for each in inputs if each.get_node().get_type_name() != "MVN"]

    return sorted({each.get_friendly_name() for each in depthwise} | _nearest_layers(depthwise, readers))


def _has_weights(operator: Any) -> bool:
    return operator.get_type_name() in _WEIGHTED


def _nearest_layers(starts: Iterable[Any], neighbours: Callable[[Any], Iterable[Any]]) -> set[str]:
    """Names of the layers with weights that are met first on the ways from some operators."""
    waiting, seen, found = list(starts), set(), set()
    while waiting:
        for operator in neighbours(waiting.pop()):
            name = operator.get_friendly_name()
            if _has_weights(operator):
                found.add(name)
            elif name not in seen:
                seen.add(name)
                waiting.append(operator)
    return found


def _import_nncf() -> Any:
    """NNCF, told to send no reports of its use: what is quantised here is nobody else's business."""
    with contextlib.ExitStack() as stack:
        if "NNCF_CI" not in os.environ:
            os.environ["NNCF_CI"] = "1"  # read when it is imported
            stack.callback(os.environ.pop, "NNCF_CI")
        try:
            import nncf
        except ImportError as error:
            raise UserError("NNCF is not installed: pip install 'maskrcnn_plus[export]'") from error
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf
