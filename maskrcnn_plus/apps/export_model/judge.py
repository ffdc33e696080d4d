"""The verdict on each attempt of an export, and the search for what may be in 8 bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.file_io import PathManager

from maskrcnn_plus.apps.evaluate import EvaluationData, evaluate_records
from maskrcnn_plus.apps.export_model.gate import Comparison, PredictsImages, compare
from maskrcnn_plus.evaluation.diagnosis import Diagnosis
from maskrcnn_plus.export.hybrid import HybridModel
from maskrcnn_plus.export.quantization import Calibration, end_layers, quantize
from maskrcnn_plus.runtime.model import ExportedModel

__all__ = ["Judge", "WholeModel", "quantize_as_allowed"]


class Judge:
    """Compares exported models with the original on annotated images, if there are any.

    Attributes:
        data: the images; None without, when everything passes.
        attempts: what was tried: "what", "drop" of AP and "result".
        comparison: of the last attempt.
    """

    def __init__(
        self, original: PredictsImages, data: EvaluationData | None, max_drop: float, threshold: float
    ) -> None:
        """Take what is compared with.

        Args:
            original: with a score threshold of 0.
            data: annotated images.
            max_drop: of the AP of masks or boxes, of 1.
            threshold: score of the objects that are compared one by one.
        """
        self.original, self.data, self.max_drop, self.threshold = original, data, max_drop, threshold
        self.attempts: list[dict[str, Any]] = []
        self.comparison: Comparison | None = None
        self._before: Diagnosis | None = None

    def passes(self, exported: Callable[[], PredictsImages], what: str) -> bool:
        """Whether an attempt may be kept.

        Args:
            exported: makes the model, with a score threshold of 0.
            what: was tried, for the report.
        """
        if self.data is None:
            return True
        if self._before is None:
            self._before = self._evaluate(self.original)
        self.comparison = compare(self._before, self._evaluate(exported()), self.threshold)
        passed = self.comparison.worst_drop <= self.max_drop
        result = "passed" if passed else "failed"
        self.attempts.append({"what": what, "drop": self.comparison.worst_drop, "result": result})
        return passed

    def _evaluate(self, model: PredictsImages) -> Diagnosis:
        return evaluate_records(model, dataclasses.replace(self.data, notes=[]))


class WholeModel:
    """A folder with one graph as a model that the gate can ask."""

    def __init__(self, folder: str) -> None:
        """Load the graph."""
        self._model = ExportedModel(folder, score_threshold=0.0)
        self.class_names = list(self._model.description.class_names)

    def predict(self, image: str) -> Instances:
        """The objects of an image file."""
        found = self._model.predict(PathManager.get_local_path(image))
        fields = {name: torch.from_numpy(found.get_fields()[name].copy()) for name in ("scores", "pred_classes")}
        boxes = Boxes(torch.from_numpy(found.pred_boxes.tensor.copy()))
        return Instances(found.image_size, pred_boxes=boxes, pred_masks_rle=found.pred_masks_rle, **fields)


def quantize_as_allowed(
    hybrid: HybridModel,
    calibration: Calibration,
    half_range: bool,
    attempt: Callable[[str, Mapping[str, Any]], bool],
    has_gate: bool,
    progress: Callable[[str], None],
) -> bool:
    """Find what can be in 8 bits: everything, else the body and the heads that fit in, else most of the body.

    Args:
        hybrid: the graphs in float32.
        calibration: their inputs.
        half_range: see `quantize`.
        attempt: writes the model with some graphs in 8 bits under a name, and says whether it passes the gate.
        has_gate: whether anything can fail; without, the body alone is quantised.
        progress: takes sentences.

    Returns:
        Whether the model that was written last passes.
    """
    graphs, made = hybrid.graphs, {}
    body, *heads = graphs
    heads = [name for name in heads if name in calibration]

    def quantized(name: str) -> Any:
        if name not in made:
            progress(f"Quantising {name}")
            made[name] = quantize(graphs[name], calibration.of(name), half_range=half_range)
        return made[name]

    if has_gate and heads and attempt("everything", {name: quantized(name) for name in (body, *heads)}):
        return True
    if attempt(body, {body: quantized(body)}):
        kept, last = {body: quantized(body)}, True
        for name in heads if has_gate and len(heads) > 1 else ():
            last = attempt(", ".join([*kept, name]), {**kept, name: quantized(name)})
            if last:
                kept[name] = quantized(name)
        return last or attempt(", ".join(kept), kept)
    ends = end_layers(graphs[body])
    progress(f"Quantising {body} but for {', '.join(ends)}")
    partial = quantize(graphs[body], calibration.of(body), half_range=half_range, keep=ends)
    return attempt(f"{body} but for its first and last layers", {body: partial})
