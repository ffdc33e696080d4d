"""What trained weights are worth on annotated images of any format that is read."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Instances
from tqdm import tqdm

from maskrcnn_plus.apps import command_line
from maskrcnn_plus.checkpoints.sources import folder_of, is_elsewhere
from maskrcnn_plus.data.channels import get_rule
from maskrcnn_plus.data.check import DataError, check_dataset, report_problems
from maskrcnn_plus.data.coco import class_key
from maskrcnn_plus.data.formats import ReadOptions, read
from maskrcnn_plus.data.formats.files import WHOLE
from maskrcnn_plus.data.images import read_image
from maskrcnn_plus.data.learned_images import image_key, read_learned
from maskrcnn_plus.errors import UserError, first_line
from maskrcnn_plus.evaluation.diagnosis import Diagnosis, JudgedImage, diagnose, judge_image
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.masks.rle_masks import RLEMasks
from maskrcnn_plus.results.evaluation_report import ShownImage, write_evaluation_report
from maskrcnn_plus.results.overlay import display_image, draw_overlay
from maskrcnn_plus.results.page import thumbnail

__all__ = ["EvaluationData", "evaluate_records", "figures_table", "read_evaluation_data", "write_report"]

SHOWN = 3
"""Of the best, of the median and of the worst images, how many are drawn."""

_SPLITS = ("val", "test", WHOLE, "train")


@dataclass
class EvaluationData:
    """Annotated images.

    Attributes:
        records: Detectron2 dataset dicts.
        class_names: name of each category id.
        split: which was taken.
        notes: what was assumed, a sentence each.
    """

    records: list[dict[str, Any]]
    class_names: list[str]
    split: str = WHOLE
    notes: list[str] = field(default_factory=list)


def read_evaluation_data(
    path: Path,
    split: str | None = None,
    name: str | None = None,
    on_error: str = "raise",
    options: ReadOptions | None = None,
    weights: str | None = None,
) -> EvaluationData:
    """Read a split of a folder of annotations.

    Args:
        path: folder or annotation file.
        split: "train", "val", "test" or "all"; None takes the first of val, test, and what has no split, of which those
            images are left out that the weights have learned from, if there are others.
        name: the format where it is known.
        on_error: "raise", or "skip" to leave out images and annotations that cannot be used.
        options: how the annotations are read.
        weights: which are to be evaluated.

    Raises:
        DataError: the data cannot be read, or has no such split or no usable image.
    """
    wanted, data = split, read(path, name, options)
    report_problems(data.problems, on_error)
    splits = {each: records for each, records in data.splits.items() if records}
    if split is None:
        split = next((each for each in _SPLITS if each in splits), WHOLE)
        if len(splits) > 1 or split not in ("val", WHOLE):
            data.notes.append(f"Of the splits {', '.join(splits)}, {split} was taken.")
    chosen = [record for records in splits.values() for record in records] if split == WHOLE else splits.get(split, [])
    if not chosen:
        raise DataError(f"{path} has no images of the split {split!r}. It has: {', '.join(splits) or 'none'}.")
    if learned := read_learned(weights):
        new = [record for record in chosen if learned.get(image_key(record)) != "train"]
        if seen := len(chosen) - len(new):
            note = f"The weights have learned from {seen} of {len(chosen)} images"
            if wanted is None and split == WHOLE and new:
                chosen = new
                data.notes.append(f"{note}, which are left out; --split all takes them too.")
            else:
                data.notes.append(f"{note}: the figures are too good for new ones.")
    records = check_dataset(chosen, on_error=on_error, num_classes=len(data.class_names))
    if not records:
        raise DataError(f"{path}: no usable image is left in the split {split!r}.")
    return EvaluationData(records, list(data.class_names), split, list(data.notes))


def evaluate_records(
    predictor: Predictor, data: EvaluationData, *, on_error: str = "raise", progress: bool = True
) -> Diagnosis:
    """Predict annotated images and judge what is found.

    Classes are matched by name. Objects of classes that the model does not know, and detections of classes that the
    data does not have, are left out; a single class on both sides is the same one. Both is added to the data's notes.

    Args:
        predictor: of any weights; with a score threshold of 0, so that the curves are whole.
        data: of `read_evaluation_data`, or dataset dicts of one's own.
        on_error: "raise", or "skip" to leave out images that cannot be used, which the notes then name.
        progress: show a progress bar.

    Raises:
        DataError: no class has a counterpart, or no image is left.
        ValueError, OSError: an image cannot be used; the message names it.
    """
    names, of_data, of_model = _match_classes(data, predictor.class_names)
    images: list[JudgedImage] = []
    diameters: list[float | None] = []
    for record in tqdm(data.records, unit="image", disable=not progress):
        annotations = [
            {**annotation, "category_id": of_data[annotation["category_id"]]}
            for annotation in record.get("annotations", [])
            if annotation["category_id"] in of_data
        ]
        try:
            found = predictor.predict(record["file_name"])
            diameter = getattr(found, "object_diameter", None)
            known = [index for index, category in enumerate(found.pred_classes.tolist()) if category in of_model]
            found = found[torch.tensor(known, dtype=torch.long)]
            found.pred_classes = torch.tensor([of_model[c] for c in found.pred_classes.tolist()], dtype=torch.long)
            images.append(judge_image({**record, "annotations": annotations}, found))
        except (UserError, OSError) as error:  # what no header tells
            if on_error != "skip":
                raise
            data.notes.append(f"Left out: {first_line(error)}")
            continue
        diameters.append(diameter)
    if not images:
        raise DataError(f"No image of {len(data.records)} can be used. {data.notes[-1]}")
    known = [diameter for diameter in diameters if diameter]
    if known:
        origin = "" if predictor.auto_scale is None else f", {predictor.auto_scale.describe()}"  # None of stored ones
        data.notes.append(
            f"Images were scaled by the diameter of their objects, not by the annotations' ({min(known):.0f} to "
            f"{max(known):.0f} px{origin})."
        )
    return diagnose(images, names)


def write_report(
    path: str | os.PathLike,
    diagnosis: Diagnosis,
    predictor: Predictor,
    *,
    weights: str,
    data: str,
    title: str = "Evaluation",
    notes: Sequence[str] = (),
    metrics_file: str | os.PathLike | None = None,
    command: str | None = None,
) -> None:
    """Write the page of an evaluation, with its best, median and worst images drawn.

    Args:
        path: the HTML file to write.
        diagnosis: of `evaluate_records`.
        predictor: that was evaluated; its mapper says how images are read.
        weights: their file, or another source of weights.
        data: what the images are, in words or as a path.
        title: heading of the page.
        notes: what was assumed, a sentence each.
        metrics_file: `metrics.json` of the training; None for that beside the weights, if they are a file.
        command: what goes on from here; None for predicting with the weights at the recommended threshold.

    Raises:
        OSError: the file cannot be written.
    """
    if command is None:
        command = (
            f"{command_line('predict')} --weights {shlex.quote(weights)} --input IMAGES --output predictions "
            f"--score-threshold {diagnosis.threshold:.2f}"
        )
    write_evaluation_report(
        path,
        diagnosis,
        title=title,
        details={"Weights": weights, "Data": data},
        notes=notes,
        shown=[_draw(image, heading, diagnosis, predictor) for heading, image in _examples(diagnosis.images)],
        metrics_file=metrics_file or (None if is_elsewhere(weights) else folder_of(weights) / "metrics.json"),
        command=command,
    )


def figures_table(diagnosis: Diagnosis) -> str:
    """The figures for a terminal."""
    lines = [f"{len(diagnosis.images)} images, {diagnosis.curve.objects} objects"]
    for task, name in (("segm", "masks"), ("bbox", "boxes"), ("boundary", "boundaries")):
        figures = diagnosis.figures[task]
        lines.append(f"  {name:<11}" + "  ".join(f"{key} {figures[key]:.1f}" for key in ("AP", "AP50", "AP75")))
    for name in diagnosis.class_names if len(diagnosis.class_names) > 1 else ():
        lines.append(f"  {name}: mask AP {diagnosis.figures['segm'][f'AP-{name}']:.1f}")
    errors = ", ".join(f"{kind} {count}" for kind, count in diagnosis.errors["objects"].most_common())
    lines.append(f"  recommended score threshold {diagnosis.threshold:.2f}: F1 {100 * diagnosis.curve.best_f1:.1f}")
    return "\n".join([*lines, f"  objects there: {errors or 'none'}"])


def _match_classes(
    data: EvaluationData, model_names: Sequence[str]
) -> tuple[list[str], dict[int, int], dict[int, int]]:
    """The classes that both have, and the index among them of each category of the data and class of the model."""
    used = {entry["category_id"] for record in data.records for entry in record.get("annotations", [])}
    keys = {index: class_key(data.class_names[index]) for index in sorted(used)}  # "cell" and "Cell" are one class
    in_data = {key: index for index, key in keys.items()}
    in_model = {class_key(name): index for index, name in enumerate(model_names)}
    if len(in_data) == len(in_model) == 1 and in_data.keys() != in_model.keys():
        name = data.class_names[next(iter(in_data.values()))]
        data.notes.append(f"The only class of the data, {name}, was taken for the model's only one, {model_names[0]}.")
        return [model_names[0]], dict.fromkeys(keys, 0), {0: 0}
    shared = [key for key in in_model if key in in_data] if in_data else list(in_model)
    if not shared:
        known = ", ".join(data.class_names[index] for index in sorted(used))
        raise DataError(
            f"No class of the data ({known}) is one of the model ({', '.join(model_names)}). "
            "Rename the classes of the data."
        )
    for what, own, other in (
        ("The model does not know these classes, whose objects are left out", in_data, in_model),
        ("The data has no objects of these classes, whose detections are left out", in_model, in_data),
    ):
        names = data.class_names if own is in_data else model_names
        missing = [names[index] for key, index in own.items() if key not in other]
        if missing and in_data:
            data.notes.append(f"{what}: {', '.join(missing)}.")
    of_data = {index: shared.index(key) for index, key in keys.items() if key in shared}
    return [model_names[in_model[key]] for key in shared], of_data, {in_model[key]: n for n, key in enumerate(shared)}


def _examples(images: Sequence[JudgedImage]) -> list[tuple[str, JudgedImage]]:
    """The best, the median and the worst images, each once, with what they are."""
    ranked = sorted(images, key=lambda image: -image.quality)
    middle = max((len(ranked) - SHOWN) // 2, 0)
    groups = (("Best", 0), ("Median", middle), ("Worst", max(len(ranked) - SHOWN, 0)))
    chosen: dict[int, tuple[str, JudgedImage]] = {}
    for heading, first in groups:
        for rank, image in enumerate(ranked[first : first + SHOWN], start=first):
            chosen.setdefault(rank, (heading, image))
    return [chosen[rank] for rank in sorted(chosen)]


def _draw(image: JudgedImage, heading: str, diagnosis: Diagnosis, predictor: Predictor) -> ShownImage:
    record, size = image.record, (image.record["height"], image.record["width"])
    mapper = predictor.mapper
    pixels = read_image(record["file_name"], get_rule(mapper), getattr(mapper, "percentiles", None))
    shown = display_image(pixels, getattr(mapper, "channels", 3), record["file_name"])
    kept = [index for index, score in enumerate(image.scores) if score >= diagnosis.threshold]

    def draw(rles: list, classes: list[int], scores: list[float]) -> bytes:
        fields = {"pred_classes": torch.tensor(classes, dtype=torch.long), "scores": torch.tensor(scores)}
        instances = Instances(size, pred_masks_rle=RLEMasks(rles, size), **fields)
        return thumbnail(draw_overlay(shown, instances, diagnosis.class_names))

    return ShownImage(
        heading=f"{heading}: {os.path.basename(record['file_name'])}",
        facts=[
            f"quality {image.quality:.2f}",
            *(f"{kind} {image.object_kinds.count(kind)}" for kind in dict.fromkeys(image.object_kinds)),
            *(f"{kind} {image.detection_kinds.count(kind)}" for kind in ("spurious", "doubled")),
        ],
        truth=draw(image.truth, image.truth_classes, [1.0] * len(image.truth)),
        found=draw(
            [image.detections[index] for index in kept],
            [image.classes[index] for index in kept],
            [image.scores[index] for index in kept],
        ),
    )
