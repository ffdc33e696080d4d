"""Estimated diameters against annotated ones, and what is found, for images at several times their size."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maskrcnn_plus.apps.evaluate import read_evaluation_data
from maskrcnn_plus.data.augmentation import ScaleImage
from maskrcnn_plus.data.channels import get_rule
from maskrcnn_plus.data.diameter import median_diameter
from maskrcnn_plus.data.windows import open_windows
from maskrcnn_plus.evaluation.ground_truth import ground_truth_rles
from maskrcnn_plus.evaluation.matching import (
    DEFAULT_THRESHOLDS,
    count_matches,
    matched_average_precision,
    visible_masks,
)
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.masks.label_map import label_map_to_rles, rles_to_label_map


@dataclass
class Figures:
    """Of the images at one factor of their size.

    Attributes:
        octaves: log2 of estimated / annotated diameter, of images with objects.
        counts: TP, FP, FN [T, 3] of each image.
        estimating, predicting: seconds of each image; the second include the first.
    """

    octaves: list[float] = field(default_factory=list)
    counts: list[np.ndarray] = field(default_factory=list)
    estimating: list[float] = field(default_factory=list)
    predicting: list[float] = field(default_factory=list)

    @property
    def average_precision(self) -> dict[str, float]:
        """Pooled over the images."""
        return matched_average_precision(np.stack(self.counts), DEFAULT_THRESHOLDS)


def measure(
    predictor: Predictor, data: Path, factors: Sequence[float], images: int | None = None
) -> dict[float, Figures]:
    """Predict images of the `val` split at several times their size.

    Args:
        predictor: of a model with a `ScaleToDiameter`.
        data: annotations of any format.
        factors: of the size.
        images: how many, spread over the split; None takes all.

    Raises:
        DataError: the data cannot be read.
    """
    records = read_evaluation_data(data, "val").records
    count = min(images or len(records), len(records))
    figures = {factor: Figures() for factor in factors}
    for record in (records[(2 * k + 1) * len(records) // (2 * count)] for k in range(count)):
        with open_windows(record["file_name"], rule=get_rule(predictor.mapper)) as windows:
            pixels = windows.reduced(1)
        objects = ground_truth_rles(record)
        labels = rles_to_label_map(objects, range(len(objects), 0, -1), *pixels.shape[:2])
        true = median_diameter(record["annotations"])
        for factor, each in figures.items():
            resize = ScaleImage(factor, max_size=2**30).get_transform(pixels)
            _add(each, predictor, resize.apply_image(pixels), resize.apply_segmentation(labels), true and true * factor)
    return figures


def _add(figures: Figures, predictor: Predictor, pixels: np.ndarray, labels: np.ndarray, true: float | None) -> None:
    image = predictor.mapper.prepare(pixels, picked=True)
    start = time.perf_counter()
    estimate = predictor.auto_scale.find(image)
    figures.estimating.append(time.perf_counter() - start)
    found = predictor.predict(pixels, diameter=estimate)
    figures.predicting.append(time.perf_counter() - start)
    if true:
        figures.octaves.append(float(np.log2(estimate / true)))
    masks, _ = visible_masks(list(found.pred_masks_rle), found.scores.tolist(), *labels.shape)
    truth = label_map_to_rles(labels, [label for label in np.unique(labels) if label])
    one_class = [0] * len(masks), [0] * len(truth)
    figures.counts.append(
        count_matches(masks, one_class[0], truth, one_class[1], [False] * len(truth), DEFAULT_THRESHOLDS)
    )


def benchmark_auto_scale(
    predictor: Predictor, data: Sequence[str], factors: Sequence[float], images: int | None
) -> None:
    """Print a Markdown table with a row for each folder and factor."""
    print("| images | times | octaves off: median, 90%, largest | AP50 | mean AP | estimate, ms | prediction, ms |")
    print("|---|---|---|---|---|---|---|")
    for folder in data:
        for factor, each in measure(predictor, Path(folder), factors, images).items():
            errors = np.abs(each.octaves)
            shares = ", ".join(f"{np.percentile(errors, share):.2f}" for share in (50, 90, 100)) if len(errors) else "-"
            found = each.average_precision
            times = " | ".join(f"{1000 * np.mean(seconds):.0f}" for seconds in (each.estimating, each.predicting))
            print(
                f"| {Path(folder).name} ({len(each.counts)}) | {factor:g} | {shares} | {found['AP50']:.3f} "
                f"| {found['mAP']:.3f} | {times} |",
                flush=True,
            )
