"""AP = TP / (TP + FP + FN) after one-to-one matching of masks: the metric of the nuclei papers.

Source: the 2018 Data Science Bowl (Caicedo et al., Nature Methods 2019) and Schmidt et al., "Cell Detection with
Star-convex Polygons" (StarDist, 2018), Sec. 3. Unlike COCO AP it has no ranking by score: it judges the one set of
objects that a user would get at a score threshold.

Shape shorthand: I images, D detections and G ground-truth objects of an image, T IoU thresholds.
"""

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.logger import create_small_table
from scipy.optimize import linear_sum_assignment

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.evaluation.ground_truth import ground_truth_rles, load_ground_truth
from maskrcnn_plus.evaluation.predictions import gather_images, get_prediction, match_images, predicted_rles
from maskrcnn_plus.masks.label_map import label_map_to_rles, rles_to_label_map
from maskrcnn_plus.masks.measure import rle_areas, rle_overlaps, rle_union

DEFAULT_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)


class MatchingEvaluator(DatasetEvaluator):
    """Detectron2 evaluator of the matching metric on a registered data set.

    A match needs the same class. An object marked `iscrowd` is never a miss, and an unmatched detection that lies by
    half its area or more in crowd regions of its class is neither TP nor FP.
    """

    reads_runs = True  # of masks, so that a model need not make dense ones

    def __init__(
        self,
        dataset_name: str,
        thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
        score_threshold: float = 0.5,
        output_dir: str | None = None,
        resolve_overlaps: bool = True,
        on_error: str | None = None,
    ) -> None:
        """Read the ground truth.

        Args:
            dataset_name: a name in Detectron2's DatasetCatalog.
            thresholds: T different IoU thresholds in (0, 1], whole percents. Precision, recall and F1 are of the first.
            score_threshold: detections with a score of at least this count.
            output_dir: folder to write `matching_results.json` to (the figures, and TP, FP, FN of each image).
            resolve_overlaps: give every pixel to the detection with the highest score, as a label image would, and drop
                detections that are left with no pixel.
            on_error: "raise" or "skip", as of the loader's `checked_dataset`; None takes annotations as they are.

        Raises:
            ValueError: thresholds out of range, or a data set without images or with ambiguous image ids.
        """
        self._thresholds = tuple(float(threshold) for threshold in thresholds)
        metric_names(self._thresholds)  # refuses bad thresholds before the model runs over the data set, not after
        self._score_threshold = float(score_threshold)
        self._output_dir = output_dir
        self._resolve_overlaps = resolve_overlaps
        self._dataset_name = dataset_name
        self._ground_truth = load_ground_truth(dataset_name, on_error)
        self._counts: dict[Any, np.ndarray] = {}  # image id -> [T, 3]

    def metric_names(self) -> list[str]:
        """Names of the figures that `evaluate` will give, as in metrics.json."""
        nothing = np.zeros((1, len(self._thresholds), 3), dtype=np.int64)
        return [f"matching/{name}" for name in matched_average_precision(nothing, self._thresholds)]

    def reset(self) -> None:
        """Forget all predictions."""
        self._counts = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Match the detections of a batch at once; only the counts are kept.

        Args:
            inputs: dicts with "image_id"; one with `SKIPPED` is left out.
            outputs: dicts with "instances": `scores` [D], `pred_classes` [D] and `pred_masks_rle` (RLEMasks or a list
                of D COCO RLEs) or, where it is absent, `pred_masks` [D, H, W] bool.

        Raises:
            ValueError: naming the image, where it is not of the data set or its predictions or ground truth are bad.
        """
        for image_id, truth, output in match_images(inputs, outputs, self._ground_truth, self._counts):
            instances, classes, scores = get_prediction(output, truth)
            kept = [index for index, score in enumerate(scores) if score >= self._score_threshold]
            rles = predicted_rles(instances, truth, kept)
            classes, scores = [classes[index] for index in kept], [scores[index] for index in kept]
            if self._resolve_overlaps:
                rles, visible = visible_masks(rles, scores, truth["height"], truth["width"])
                classes = [classes[index] for index in visible]
            annotations = truth.get("annotations", [])
            self._counts[image_id] = count_matches(
                rles,
                classes,
                ground_truth_rles(truth),
                [annotation["category_id"] for annotation in annotations],
                [bool(annotation.get("iscrowd", 0)) for annotation in annotations],
                self._thresholds,
            )

    def evaluate(self) -> OrderedDict:
        """Summarise over all images and processes.

        Returns:
            {"matching": figures of `matched_average_precision`} on the main process, {} on the others.

        Raises:
            ValueError: images of the data set never got predictions.
        """
        counts = gather_images(self._counts, self._ground_truth)
        if counts is None:
            return OrderedDict()
        figures = matched_average_precision(np.stack(list(counts.values())), self._thresholds)
        logging.getLogger(__name__).info(
            "Matching at score >= %g on %s (%d images):\n%s",
            self._score_threshold,
            self._dataset_name,
            len(counts),
            create_small_table({name: figures[name] for name in figures if not name.startswith("image_AP")}),
        )
        if self._output_dir:
            images = [
                {"image_id": image_id, **dict(zip(("TP", "FP", "FN"), table.T.tolist(), strict=True))}
                for image_id, table in counts.items()
            ]
            report = {"thresholds": self._thresholds, "figures": figures, "images": images}
            os.makedirs(self._output_dir, exist_ok=True)
            write_atomically(os.path.join(self._output_dir, "matching_results.json"), json.dumps(report).encode())
        return OrderedDict(matching=figures)


def visible_masks(
    rles: list[dict[str, Any]], scores: Sequence[float], height: int, width: int
) -> tuple[list[dict[str, Any]], list[int]]:
    """Give every pixel to the mask with the highest score, as a label image would.

    Returns:
        What is left of the masks, of height x width pixels, that keep a pixel, and their indices.
    """
    label_map = rles_to_label_map(rles, scores, height, width)
    rles = label_map_to_rles(label_map, range(1, len(rles) + 1))
    visible = np.flatnonzero(rle_areas(rles)).tolist()
    return [rles[index] for index in visible], visible


def count_matches(
    predicted: list[dict[str, Any]],
    predicted_classes: Sequence[int],
    truth: list[dict[str, Any]],
    truth_classes: Sequence[int],
    truth_is_crowd: Sequence[bool],
    thresholds: Sequence[float],
) -> np.ndarray:
    """Count the matches of one image.

    Args:
        predicted: D RLEs.
        predicted_classes: D class indices.
        truth: G RLEs of the same size.
        truth_classes: G class indices.
        truth_is_crowd: G flags; a crowd region is never matched.
        thresholds: T IoU thresholds.

    Returns:
        [T, 3] int64: TP, FP, FN at each threshold.
    """
    objects = [index for index, is_crowd in enumerate(truth_is_crowd) if not is_crowd]
    ious = rle_overlaps(predicted, [truth[index] for index in objects])  # [D, G]
    same_class = np.asarray(predicted_classes)[:, None] == np.asarray([truth_classes[index] for index in objects])[None]
    in_crowd = find_in_crowds(predicted, predicted_classes, truth, truth_classes, truth_is_crowd)
    return match_counts(ious * same_class, thresholds, in_crowd)


def find_in_crowds(
    predicted: list[dict[str, Any]],
    predicted_classes: Sequence[int],
    truth: list[dict[str, Any]],
    truth_classes: Sequence[int],
    truth_is_crowd: Sequence[bool],
) -> np.ndarray:
    """Whether each detection lies by half or more in crowd regions of its class, bool [D].

    Args: as of `count_matches`.
    """
    in_crowd = np.zeros(len(predicted), dtype=bool)
    for category in {truth_classes[index] for index, is_crowd in enumerate(truth_is_crowd) if is_crowd}:
        crowds = [truth[i] for i, is_crowd in enumerate(truth_is_crowd) if is_crowd and truth_classes[i] == category]
        covered = rle_overlaps(predicted, [rle_union(crowds)], of_first=True)[:, 0]  # [D]
        in_crowd |= (covered >= 0.5) & (np.asarray(predicted_classes) == category)
    return in_crowd


def match_counts(ious: np.ndarray, thresholds: Sequence[float], ignorable: np.ndarray | None = None) -> np.ndarray:
    """Match detections and objects one to one so that the most pairs reach the threshold.

    Among the matchings with the most pairs one with the fewest false positives is taken, so that an ignorable detection
    does not take an object from one that would count against the model.

    Args:
        ious: [D, G] intersection over union.
        thresholds: T values in (0, 1]; a pair may match from this IoU on.
        ignorable: [D] bool, detections that are no false positives when unmatched; none where absent.

    Returns:
        [T, 3] int64: TP, FP, FN at each threshold.
    """
    num_detections, num_objects = ious.shape
    ignorable = np.zeros(num_detections, dtype=bool) if ignorable is None else ignorable
    counts = np.empty((len(thresholds), 3), dtype=np.int64)
    # All the bonuses together are worth less than one pair.
    worth = 1 + ~ignorable[:, None] / (2 * num_detections + 2)  # [D, 1]
    for row, threshold in enumerate(thresholds):
        candidates = ious >= threshold
        detections, objects = linear_sum_assignment(candidates * worth, maximize=True)
        matched = detections[candidates[detections, objects]]
        false_positives = np.count_nonzero(~ignorable) - np.count_nonzero(~ignorable[matched])
        counts[row] = len(matched), false_positives, num_objects - len(matched)
    return counts


def matched_average_precision(counts: np.ndarray, thresholds: Sequence[float]) -> dict[str, float]:
    """Turn the counts of many images into the figures of the nuclei papers, all in 0..1.

    Args:
        counts: [I, T, 3] TP, FP, FN of I >= 1 images.
        thresholds: the T IoU thresholds.

    Returns:
        AP50, ... and their mean mAP from TP, FP and FN summed over images; image_AP50, ... and image_mAP as means
        of the images' own AP (an image without objects and detections counts 1); precision50, recall50 and F1_50, from
        sums, where 50 stands for the first threshold. Where there is nothing to find and nothing was found, all are 1.
    """
    names = metric_names(thresholds)
    pooled = counts.sum(axis=0)  # [I, T, 3] -> [T, 3]
    average_precision = [_ratio(tp, tp + fp + fn, fp + fn) for tp, fp, fn in pooled.tolist()]
    per_image = [[_ratio(tp, tp + fp + fn, fp + fn) for tp, fp, fn in image] for image in counts.tolist()]  # I x T
    image_average_precision = np.mean(per_image, axis=0).tolist()  # T
    figures = {f"AP{name}": value for name, value in zip(names, average_precision, strict=True)}
    figures["mAP"] = float(np.mean(average_precision))
    figures |= {f"image_AP{name}": value for name, value in zip(names, image_average_precision, strict=True)}
    figures["image_mAP"] = float(np.mean(image_average_precision))
    tp, fp, fn = pooled[0].tolist()
    figures[f"precision{names[0]}"] = _ratio(tp, tp + fp, fp + fn)
    figures[f"recall{names[0]}"] = _ratio(tp, tp + fn, fp + fn)
    figures[f"F1_{names[0]}"] = _ratio(2 * tp, 2 * tp + fp + fn, fp + fn)
    return figures


def metric_names(thresholds: Sequence[float]) -> list[str]:
    """Name IoU thresholds by their percents: 0.5 -> "50".

    Raises:
        ValueError: no thresholds, one outside (0, 1], not a whole percent, or twice the same.
    """
    percents = [round(100 * threshold) for threshold in thresholds if 0 < threshold <= 1]
    # An IoU outside (0, 1], NaN included, is missing from the percents.
    whole = len(percents) == len(thresholds) and np.allclose(100 * np.asarray(thresholds), percents, rtol=0, atol=1e-6)
    if not percents or not whole or len(set(percents)) < len(percents):
        raise ValueError(
            f"thresholds must be different IoUs in (0, 1] of whole percents, as (0.5, 0.75), not {tuple(thresholds)}."
        )
    return [str(percent) for percent in percents]


def _ratio(hits: int, total: int, errors: int) -> float:
    """Divide; a ratio of nothing is 1 where there are no errors at all and 0 where there are."""
    return hits / total if hits else float(errors == 0)
