"""What a model is worth on annotated images: average precision, the best threshold, and what kinds of errors it makes.

The figures come from hotcoco, but for the AP of boundaries (`evaluation/boundary.py`) and the kinds of errors that
people who count objects ask for (`evaluation/errors.py`).

Shape shorthand: D detections and G ground-truth objects of an image, K classes, P points of a curve.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.structures import BoxMode, Instances

from maskrcnn_plus.evaluation.boundary import boundary_precision_and_recall
from maskrcnn_plus.evaluation.coco import COCO_MAX_DETECTIONS
from maskrcnn_plus.evaluation.coco_api import coco_dataset, coco_evaluation, summarize
from maskrcnn_plus.evaluation.errors import IGNORED, sort_errors
from maskrcnn_plus.evaluation.ground_truth import ground_truth_rles
from maskrcnn_plus.evaluation.matching import (
    DEFAULT_THRESHOLDS,
    count_matches,
    find_in_crowds,
    matched_average_precision,
    visible_masks,
)
from maskrcnn_plus.evaluation.predictions import get_prediction, predicted_rles

__all__ = ["Curve", "Diagnosis", "JudgedImage", "diagnose", "judge_image"]

SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, float("inf"))}
"""COCO's ranges of an object's area in pixels."""

DEFAULT_SCORE = 0.5  # where there is nothing to choose a threshold by
_AT = 0.5  # IoU from which on an object is found
_CALIBRATION_BINS = 10


@dataclass
class JudgedImage:
    """An image with what is in it and what was found.

    Attributes:
        record: Detectron2 dataset dict; `category_id` counts the classes that are judged.
        detections, scores, classes, boxes: D RLEs, scores, class indices and boxes (XYWH), of all scores.
        truth, truth_classes, crowd: G RLEs, class indices, and whether each is a crowd region.
        quality: in 0..1, TP / (TP + FP + FN) in the mean over IoUs of 0.5 to 0.9, at the recommended threshold.
        detection_kinds, object_kinds: of `sort_errors`, at that threshold; crowds and what is hidden are left out.
    """

    record: dict[str, Any]
    detections: list[dict[str, Any]]
    scores: list[float]
    classes: list[int]
    boxes: list[list[float]]
    truth: list[dict[str, Any]]
    truth_classes: list[int]
    crowd: list[bool]
    quality: float = float("nan")
    detection_kinds: list[str] = field(default_factory=list)
    object_kinds: list[str] = field(default_factory=list)


@dataclass
class Curve:
    """Precision and recall of masks at an IoU of 0.5 as the score threshold falls.

    Attributes:
        scores, precision, recall: [P]; of all detections with at least this score.
        objects: G of all images.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    objects: int

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall [P]."""
        total = self.precision + self.recall
        return np.divide(2 * self.precision * self.recall, total, out=np.zeros_like(total), where=total > 0)

    @property
    def best(self) -> int | None:
        """Index of the last point of the threshold; None where nothing is ever found."""
        hundredths = np.unique(np.floor(100 * self.scores) / 100)
        points = np.searchsorted(-self.scores, -hundredths, side="right") - 1
        return int(points[self.f1[points].argmax()]) if len(points) and self.f1[points].max() > 0 else None

    @property
    def threshold(self) -> float | None:
        """The hundredth from which on detections are best taken, by F1; None where nothing is ever found."""
        return None if self.best is None else math.floor(100 * self.scores[self.best]) / 100

    @property
    def best_f1(self) -> float:
        """F1 at the threshold."""
        return 0.0 if self.best is None else float(self.f1[self.best])


@dataclass
class Diagnosis:
    """What a model is worth on annotated images.

    Attributes:
        class_names: K names.
        images: in the order given.
        figures: "bbox", "segm" and "boundary": as of `COCOMaskEvaluator`, in percent; "matching": as of
            `matched_average_precision`, at the recommended threshold.
        curve, class_curves: of all classes together, and of each.
        threshold: recommended least score.
        confusion: [K + 1, K + 1] objects by true class (row) and predicted class (column), the background last.
        errors: objects and detections by their kind: {"objects": Counter, "detections": Counter}.
        tide: hotcoco's `tide_errors` of masks.
        calibration: hotcoco's `calibration` of masks.
        sizes: number of objects of each of `SIZES`.
    """

    class_names: list[str]
    images: list[JudgedImage]
    figures: dict[str, dict[str, float]]
    curve: Curve
    class_curves: list[Curve]
    threshold: float
    confusion: np.ndarray
    errors: dict[str, Counter]
    tide: dict[str, Any]
    calibration: dict[str, Any]
    sizes: dict[str, int]

    @property
    def class_thresholds(self) -> dict[str, float]:
        """The recommended score of each class that has one."""
        found = zip(self.class_names, self.class_curves, strict=True)
        return {name: curve.threshold for name, curve in found if curve.threshold is not None}


def judge_image(record: dict[str, Any], instances: Instances) -> JudgedImage:
    """Bring an image's annotations and detections together.

    Args:
        record: Detectron2 dataset dict of the image.
        instances: of a model, with `scores`, `pred_classes`, `pred_boxes` and masks.

    Raises:
        ValueError: naming the image, where annotations or predictions are malformed.
    """
    instances, classes, scores = get_prediction({"instances": instances}, record)
    annotations = record.get("annotations", [])
    boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    return JudgedImage(
        record=record,
        detections=predicted_rles(instances, record),
        scores=scores,
        classes=classes,
        boxes=boxes,
        truth=ground_truth_rles(record),
        truth_classes=[int(annotation["category_id"]) for annotation in annotations],
        crowd=[bool(annotation.get("iscrowd", 0)) for annotation in annotations],
    )


def diagnose(images: Sequence[JudgedImage], class_names: Sequence[str]) -> Diagnosis:
    """Compute all figures; the images get their `quality` and kinds of errors.

    Args:
        images: at least one.
        class_names: K names.
    """
    images, class_names = list(images), list(class_names)
    dataset = coco_dataset([image.record for image in images], class_names, [image.truth for image in images])
    detections = [
        {"image_id": number, "category_id": category, "score": score, "segmentation": rle, "bbox": box}
        for number, image in enumerate(images, start=1)
        for rle, score, category, box in zip(image.detections, image.scores, image.classes, image.boxes, strict=True)
    ]
    limit = max(COCO_MAX_DETECTIONS, *(len(image.detections) for image in images))
    figures, evaluations = {}, {}
    for task in ("bbox", "segm"):
        evaluations[task] = coco_evaluation(dataset, detections, task, limit, "hotcoco")[0]
        arrays = (np.asarray(evaluations[task].eval[name])[..., 0] for name in ("precision", "recall"))
        figures[task] = summarize(*arrays, class_names)
    figures["boundary"] = summarize(*boundary_precision_and_recall(dataset, detections, limit), class_names)
    masks = evaluations["segm"]
    curves, ignored = _curves(masks, len(class_names))
    curve = _curve([pair for pairs, _ in curves for pair in pairs], sum(objects for _, objects in curves))
    threshold = DEFAULT_SCORE if curve.threshold is None else curve.threshold
    judged = [detection for number, detection in enumerate(detections, start=1) if number not in ignored]
    counts = np.stack([_judge(image, threshold) for image in images])
    figures["matching"] = matched_average_precision(counts, DEFAULT_THRESHOLDS)
    plain = {**dataset, "annotations": [each for each in dataset["annotations"] if not each["iscrowd"]]}
    confusion = coco_evaluation(plain, judged, "segm", limit, "hotcoco")[0].confusion_matrix(_AT, limit, threshold)
    areas = np.array([each["area"] for each in plain["annotations"]])
    return Diagnosis(
        class_names=class_names,
        images=images,
        figures=figures,
        curve=curve,
        class_curves=[_curve(*each) for each in curves],
        threshold=threshold,
        confusion=np.asarray(confusion["matrix"]).astype(int),
        errors={
            "objects": Counter(kind for image in images for kind in image.object_kinds),
            "detections": Counter(kind for image in images for kind in image.detection_kinds),
        },
        tide=masks.tide_errors(pos_thr=_AT),
        calibration=masks.calibration(n_bins=_CALIBRATION_BINS, iou_threshold=_AT),
        sizes={name: int(((areas >= low) & (areas < high)).sum()) for name, (low, high) in SIZES.items()},
    )


def _curves(evaluation: Any, num_classes: int) -> tuple[list[tuple[list[tuple[float, bool]], int]], set[int]]:
    """(score, whether right) of each detection, and the number of objects, of each class; ids of ignored detections."""
    found: list[list[tuple[float, bool]]] = [[] for _ in range(num_classes)]
    objects, ignored = [0] * num_classes, set()
    for entry in evaluation.eval_imgs:
        if entry is None or entry["aRng"][1] <= SIZES["small"][1] or entry["aRng"][0] > 0:
            continue  # of a range of sizes
        category = entry["category_id"]
        objects[category] += sum(not ignore for ignore in entry["gtIgnore"])
        right, ignore = entry["dtMatched"][0], entry["dtIgnore"][0]
        for number, score, is_right, is_ignored in zip(entry["dtIds"], entry["dtScores"], right, ignore, strict=True):
            if is_ignored:
                ignored.add(number)
            else:
                found[category].append((score, bool(is_right)))
    return list(zip(found, objects, strict=True)), ignored


def _curve(pairs: Sequence[tuple[float, bool]], objects: int) -> Curve:
    """The curve of (score, whether right) of all detections."""
    scores, right = (np.array([pair[k] for pair in pairs], dtype=float) for k in (0, 1))
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], right[order].cumsum()
    last = np.flatnonzero(np.diff(scores, append=-np.inf))  # of detections with the same score
    counts = np.arange(1, len(scores) + 1)
    return Curve(scores[last], (hits / counts)[last], hits[last] / max(objects, 1), objects)


def _judge(image: JudgedImage, threshold: float) -> np.ndarray:
    """Set what depends on the threshold; returns TP, FP, FN at each IoU [T, 3]."""
    kept = [index for index, score in enumerate(image.scores) if score >= threshold]
    scores, classes = [image.scores[index] for index in kept], [image.classes[index] for index in kept]
    height, width = image.record["height"], image.record["width"]
    rles, visible = visible_masks([image.detections[index] for index in kept], scores, height, width)
    classes = [classes[index] for index in visible]
    counts = count_matches(rles, classes, image.truth, image.truth_classes, image.crowd, DEFAULT_THRESHOLDS)
    totals = counts.sum(axis=1)
    image.quality = float(np.where(totals > 0, counts[:, 0] / np.maximum(totals, 1), 1.0).mean())
    plain = [index for index, is_crowd in enumerate(image.crowd) if not is_crowd]
    kinds, image.object_kinds = sort_errors(
        rles,
        classes,
        [image.truth[index] for index in plain],
        [image.truth_classes[index] for index in plain],
        _AT,
        find_in_crowds(rles, classes, image.truth, image.truth_classes, image.crowd),
    )
    image.detection_kinds = [kind for kind in kinds if kind != IGNORED]
    return counts
