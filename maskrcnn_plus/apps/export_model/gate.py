"""An exported model beside the original: average precision, and object by object what has changed.

Shape shorthand: A and B objects of an image, of the original and of the exported model.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from detectron2.structures import Instances
from scipy.optimize import linear_sum_assignment

from maskrcnn_plus.evaluation.diagnosis import Diagnosis, JudgedImage
from maskrcnn_plus.masks.measure import rle_ious

__all__ = ["Change", "Comparison", "PredictsImages", "compare", "time_in_turn"]

SAME = 0.99
"""IoU of masks from which on they count as the same."""

_PAIRED = 0.5  # IoU from which on two objects are one


class PredictsImages(Protocol):
    """What the gate needs of a model."""

    class_names: Sequence[str]

    def predict(self, image: str) -> Instances:
        """The objects of an image."""


@dataclass(frozen=True)
class Change:
    """An object that an export changed.

    Attributes:
        image: name of the file.
        class_name: of the object.
        kind: "lost", "new", or "other": in both, with another mask or score, or on the other side of the threshold.
        iou: of the masks of both; NaN where it is in one alone.
        score, exported_score: of both; NaN where there is none.
    """

    image: str
    class_name: str
    kind: str
    iou: float
    score: float
    exported_score: float

    @property
    def severity(self) -> float:
        """The larger, the more has changed."""
        if self.kind != "other":
            return 1 + (self.score if self.kind == "lost" else self.exported_score)
        return max(1 - self.iou, abs(self.score - self.exported_score))


@dataclass
class Comparison:
    """Figures of both models on the same images.

    Attributes:
        figures: {"original", "exported"}: {"mask AP", "box AP", ...}, in 0..1.
        drop: of "mask AP" and "box AP", original less exported.
        threshold: score of the objects that are compared one by one.
        paired, lost, new: numbers of objects at the threshold.
        same: share of the pairs whose masks have an IoU of `SAME` or more.
        lowest_iou, mean_iou, largest_score_change, mean_score_change: of the pairs; NaN without any.
        changes: the objects that changed, the most first.
    """

    figures: dict[str, dict[str, float]]
    drop: dict[str, float]
    threshold: float
    paired: int = 0
    lost: int = 0
    new: int = 0
    same: float = math.nan
    lowest_iou: float = math.nan
    mean_iou: float = math.nan
    largest_score_change: float = math.nan
    mean_score_change: float = math.nan
    changes: list[Change] = field(default_factory=list)

    @property
    def worst_drop(self) -> float:
        """The larger of the drops of mask and box AP."""
        return max(self.drop.values())


def compare(original: Diagnosis, exported: Diagnosis, threshold: float) -> Comparison:
    """Compare two evaluations of the same images.

    Args:
        original, exported: of `evaluate_records`, all scores.
        threshold: objects of the original from this score on are looked for among all of the exported model, and the
            other way round.
    """
    figures = {
        name: {
            f"{task} {key}": each.figures[group][key] / 100
            for group, task in (("segm", "mask"), ("bbox", "box"))
            for key in ("AP", "AP50", "AP75")
        }
        for name, each in (("original", original), ("exported", exported))
    }
    drop = {key: figures["original"][key] - figures["exported"][key] for key in ("mask AP", "box AP")}
    comparison = Comparison(figures, drop, threshold)
    pairs: list[tuple[float, float]] = []  # IoU, change of score
    for before, after in zip(original.images, exported.images, strict=True):
        _compare_image(before, after, original.class_names, comparison, pairs)
    comparison.changes.sort(key=lambda change: -change.severity)
    comparison.paired = len(pairs)
    if pairs:
        ious, scores = (np.array(each) for each in zip(*pairs, strict=True))
        comparison.same, comparison.lowest_iou = float((ious >= SAME).mean()), float(ious.min())
        comparison.mean_iou = float(ious.mean())
        comparison.largest_score_change, comparison.mean_score_change = float(scores.max()), float(scores.mean())
    return comparison


def _compare_image(
    before: JudgedImage,
    after: JudgedImage,
    names: Sequence[str],
    comparison: Comparison,
    pairs: list[tuple[float, float]],
) -> None:
    image, threshold = os.path.basename(before.record["file_name"]), comparison.threshold
    ious = rle_ious(before.detections, after.detections)  # [A, B]
    ious = ious * (np.array(before.classes)[:, None] == np.array(after.classes)[None])
    shown_before, shown_after = (np.array(each.scores) >= threshold for each in (before, after))
    # Those that a user sees find one another first.
    worth = np.where(ious >= _PAIRED, ious, 0) * (1 + shown_before[:, None] + shown_after[None])
    rows, columns = linear_sum_assignment(worth, maximize=True)
    partner = {a: b for a, b in zip(rows.tolist(), columns.tolist(), strict=True) if worth[a, b] > 0}
    found = set(partner.values())
    for a, b in partner.items():
        if not (shown_before[a] or shown_after[b]):
            continue
        iou, score, other = float(ious[a, b]), before.scores[a], after.scores[b]
        pairs.append((iou, abs(score - other)))
        crossed = shown_before[a] != shown_after[b]
        if crossed or iou < SAME or abs(score - other) > 0.01:
            comparison.changes.append(Change(image, names[before.classes[a]], "other", iou, score, other))
    for a in np.flatnonzero(shown_before).tolist():
        if a not in partner:
            comparison.lost += 1
            change = Change(image, names[before.classes[a]], "lost", math.nan, before.scores[a], math.nan)
            comparison.changes.append(change)
    for b in np.flatnonzero(shown_after).tolist():
        if b not in found:
            comparison.new += 1
            change = Change(image, names[after.classes[b]], "new", math.nan, math.nan, after.scores[b])
            comparison.changes.append(change)


def time_in_turn(models: Sequence[PredictsImages], images: Sequence[str], rounds: int = 3) -> list[float]:
    """Median milliseconds an image of each model, which run in turn."""
    times: list[list[float]] = [[] for _ in models]
    for turn in range(rounds + 1):
        for image in images:
            for record, model in zip(times, models, strict=True):
                start = time.perf_counter()
                model.predict(image)
                if turn:  # the first is for what is done once
                    record.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(each) for each in times]
