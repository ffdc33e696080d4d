"""Weights -> a folder with the exported model, which has passed the gate, and what the gate found.

result = export_model("model_best.pth", "model_int8", precision="int8")
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from maskrcnn_plus.apps.evaluate import EvaluationData, read_evaluation_data
from maskrcnn_plus.apps.export_model.data import choose_evenly, folder_images, read_config_data
from maskrcnn_plus.apps.export_model.gate import Comparison, PredictsImages, time_in_turn
from maskrcnn_plus.apps.export_model.judge import Judge, WholeModel, quantize_as_allowed
from maskrcnn_plus.apps.export_model.report import JSON_NAME, write_reports
from maskrcnn_plus.checkpoints.choice import choose_config
from maskrcnn_plus.checkpoints.description import NoDescriptionError, describe, read_description
from maskrcnn_plus.config import get_score_threshold
from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.device import SATURATES, saturates
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.export.hybrid import HybridModel
from maskrcnn_plus.export.quantization import Calibration
from maskrcnn_plus.export.whole import export_whole
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.model_folder import FILE_NAME, is_model_folder

__all__ = ["FORMATS", "MAX_DROP", "PRECISIONS", "ExportResult", "export_model"]

MAX_DROP = {"fp32": 0.0005, "fp16": 0.0005, "int8": 0.005}
"""By precision, how much lower the AP of masks or boxes may be, of 1."""

PRECISIONS = tuple(MAX_DROP)

FORMATS = {
    "hybrid": "OpenVINO graphs with operators of maskrcnn_plus, for Predictor",
    "onnx": "one ONNX graph, for ONNX Runtime",
    "openvino": "one graph, for OpenVINO",
}
"""What a model is exported to, in words."""

CALIBRATION_IMAGES = 64
_TIMED = 3  # images
_KEPT = ("version", "config", "unknown", "class_names", "category_ids", "pixels", "data", "packages")


@dataclass
class ExportResult:
    """What an export did.

    Attributes:
        folder: with the reports, and the model unless the gate failed.
        passed: whether the gate was passed; None where none was run.
        gate: a sentence on the gate.
        comparison: of the original and the exported model, of the last attempt.
        notes: what was chosen or assumed, a sentence each.
    """

    folder: Path
    passed: bool | None
    gate: str
    comparison: Comparison | None
    notes: list[str]


def export_model(
    weights: str,
    output: str | os.PathLike,
    *,
    to: str = "hybrid",
    precision: str = "fp32",
    config_file: str | None = None,
    calibrate: str | os.PathLike | None = None,
    gate: str | os.PathLike | None = None,
    max_drop: float | None = None,
    diameter: float | None = None,
    progress: Callable[[str], None] = print,
) -> ExportResult:
    """Export a model, as graphs with this package's operators between them or as one graph.

    The exported model and the original predict the same annotated images. Where the average precision falls by more
    than `max_drop`, the export fails: the folder then has the reports alone. In 8 bits, where all graphs together fall
    too far, the body alone is tried, to which heads are added as long as the gate allows; then the body with its first
    and last layers in float32. Without annotated images the body alone is quantised, and nothing is promised.

    Args:
        weights: checkpoint of a training.
        output: folder; an earlier export in it is replaced.
        to: key of `FORMATS`.
        precision: one of `PRECISIONS`; "int8" is for "hybrid", and see `export_whole`.
        config_file: for weights that do not know their config.
        calibrate: folder of images that show the range of values, for "int8"; None takes training images of the
            config.
        gate: annotated images of any format, of which the split "val" is taken; None takes those of the config.
        max_drop: of AP, of 1; None takes that of `MAX_DROP`.
        diameter: median diameter of the objects of all images, pixels, for one graph of a model that brings objects to
            one diameter: it cannot estimate it.
        progress: takes sentences.

    Raises:
        UserError: a part cannot be exported, there is nothing to calibrate on, or the folder holds something else.
        WeightsError, DataError: weights or images cannot be used.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}, it must be one of {', '.join(PRECISIONS)}")
    if to not in FORMATS:
        raise UserError(f"there is no format {to!r}, only {', '.join(FORMATS)}")
    if precision == "int8" and to != "hybrid":
        raise UserError("int8 is for OpenVINO graphs that Predictor runs: --to openvino without --whole")
    if diameter is not None and to == "hybrid":
        raise UserError(
            "--diameter is for one graph (--to onnx, or --whole): a folder for Predictor takes it when it predicts"
        )
    max_drop = MAX_DROP[precision] if max_drop is None else max_drop
    if not max_drop >= 0:
        raise UserError(f"max_drop is {max_drop}, it must be 0 or more")
    folder = Path(output)
    _check_output(folder)
    cfg, description = _read_weights(weights, config_file, to)
    images, source = _calibration_images(cfg, calibrate) if precision == "int8" else ([], "")
    data, why = _gate_data(cfg, gate)
    progress(f"The gate: {why}" if data is None else f"The gate: {len(data.records)} images of {why}")
    predictor = Predictor(cfg, weights, device="cpu", optimize=False, diameter=diameter)
    size = sum(tensor.numel() * tensor.element_size() for tensor in predictor.model.state_dict().values())
    original = Predictor(cfg, weights, device="cpu", score_threshold=0.0, diameter=diameter)
    judge = Judge(original, data, max_drop, get_score_threshold(cfg))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export_", dir=folder.parent) as place:
        if to == "hybrid":
            passed, notes = _write_hybrid(
                HybridModel(predictor, description), place, precision, images, judge, progress
            )
            notes += [f"Calibrated on {len(images)} images of {source}."] if images else []
            exported: PredictsImages = Predictor(place, score_threshold=0.0)
        else:
            export_whole(predictor, place, to, precision)
            exported, notes = WholeModel(place), []
            passed = judge.passes(lambda: exported, "nothing")
        facts = {
            "weights": str(weights),
            "format": FORMATS[to],
            "precision": precision,
            "date": datetime.now().strftime("%Y-%m-%d %H:%M"),
            "passed": None if data is None else passed,
            "gate": _verdict(judge, why, passed),
            "max_drop": max_drop,
            "attempts": judge.attempts if precision == "int8" else [],
            "bytes": {"original": size, "exported": sum(path.stat().st_size for path in Path(place).iterdir())},
            "notes": [*notes, *(data.notes if data else ())],
        }
        if data is not None:
            timed = [record["file_name"] for record in data.records[:_TIMED]]
            times = time_in_turn([original, exported], timed)
            facts["latency_ms"] = dict(zip(("original", "exported"), times, strict=True))
        (folder / FILE_NAME).unlink(missing_ok=True)  # from here on the folder holds no whole model
        write_reports(folder, facts, judge.comparison)
        _move(Path(place), folder, passed)
    return ExportResult(folder, facts["passed"], facts["gate"], judge.comparison, facts["notes"])


def _write_hybrid(
    hybrid: HybridModel,
    place: str,
    precision: str,
    images: list[str],
    judge: Judge,
    progress: Callable[[str], None],
) -> tuple[bool, list[str]]:
    """Write what passes the gate; gives whether it does, and notes."""
    half_range = precision == "int8" and saturates()
    notes = [f"{each}: OpenVINO has no equivalent of its own." for each in hybrid.staying]

    def attempt(what: str, quantized: Mapping[str, Any]) -> bool:
        hybrid.write(place, precision, quantized, {"safe_range": half_range})
        return judge.passes(lambda: Predictor(place, score_threshold=0.0), what)

    if precision != "int8":
        if precision == "fp16":
            notes.append("Weights are stored in half the space; CPUs compute with them in float32.")
        return attempt("nothing", {}), notes
    notes.append(
        f"{SATURATES} 8-bit weights keep to half of their range, which is safe here and on every other CPU."
        if half_range
        else "8-bit weights use their whole range: on x86 CPUs without VNNI (AVX2 alone) sums could saturate."
    )
    calibration = Calibration(hybrid.predictor, images, hybrid.candidates)
    return quantize_as_allowed(hybrid, calibration, half_range, attempt, judge.data is not None, progress), notes


def _check_output(folder: Path) -> None:
    if folder.is_dir():
        is_ours = is_model_folder(folder) or (folder / JSON_NAME).is_file()
        if not is_ours and any(folder.iterdir()):
            raise UserError(f"{folder} holds something else than an exported model: name another --output")
    elif folder.exists():
        raise UserError(f"{folder} is a file; --output is a folder")


def _read_weights(weights: str, config_file: str | None, to: str) -> tuple[DictConfig, dict[str, Any]]:
    if os.path.isdir(weights):
        raise UserError(f"{weights} is a folder; --weights is the checkpoint of a training")
    cfg = choose_config(config_file, weights)
    if config_file is None:
        with contextlib.suppress(NoDescriptionError):
            description = read_description(weights)
            return cfg, {key: description[key] for key in _KEPT if key in description}
    description = describe(cfg)
    if description["unknown"] and to == "hybrid":  # one graph does not name what it was made of
        raise UserError(
            f"{config_file} has parts that an exported model cannot name: {', '.join(description['unknown'][:5])}; "
            "one graph need not name them (--to onnx, or --whole)"
        )
    return cfg, description


def _calibration_images(cfg: DictConfig, folder: str | os.PathLike | None) -> tuple[list[str], str]:
    if folder is not None:
        return choose_evenly(folder_images(folder), CALIBRATION_IMAGES), str(folder)
    try:
        records = read_config_data(cfg, "train").records
    except DataError as error:
        raise DataError(
            f"int8 needs images to calibrate on, and {error}. Name a folder of some: --calibrate"
        ) from error
    return choose_evenly([record["file_name"] for record in records], CALIBRATION_IMAGES), "the training data"


def _gate_data(cfg: DictConfig, path: str | os.PathLike | None) -> tuple[EvaluationData | None, str]:
    """Annotated images and where they come from; None and why there are none."""
    if path is not None:
        data, where = read_evaluation_data(Path(path)), str(path)
        if not any(record.get("annotations") for record in data.records):
            raise DataError(f"--gate {path}: its images have no annotated objects")
        return data, where
    try:
        data = read_config_data(cfg, "test")
    except DataError as error:
        return None, f"none was run, since {error}. --gate names annotated images."
    if not any(record.get("annotations") for record in data.records):
        return None, "none was run, since the validation images have no objects. --gate names annotated images."
    return data, "the validation data"


def _verdict(judge: Judge, why: str, passed: bool) -> str:
    if judge.data is None:
        return f"The gate: {why}"
    fell = f"The gate, {len(judge.data.records)} images of {why}: AP falls by {judge.comparison.worst_drop:.4f}"
    return f"{fell}, {judge.max_drop:g} is allowed: {'passed' if passed else 'failed'}."


def _move(place: Path, folder: Path, passed: bool) -> None:
    """Put a model that passed into its folder, `model.json` last; of one that failed nothing stays."""
    for path in sorted(place.iterdir(), key=lambda path: path.name == FILE_NAME) if passed else ():
        shutil.move(path, folder / path.name)
