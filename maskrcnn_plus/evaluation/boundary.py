"""Boundary AP: COCO's AP of masks, with an IoU that large objects must earn at their outlines too.

Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation" (CVPR 2021). The boundary of a mask
is its pixels within a distance of 2 % of the image's diagonal from its outline (Sec. 4); an IoU is the smaller one of
that of the masks and that of their boundaries (Sec. 6).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_plus.evaluation.coco_api import coco_results, run_evaluation
from maskrcnn_plus.rle import decode_runs, encode_runs, join_runs, ranges

DISTANCE = 0.02
"""Width of a boundary, of the image's diagonal."""


def boundary_rles(rles: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The boundaries of masks; the border of the image is an outline too.

    Args:
        rles: of one image.

    Returns:
        RLEs of the same size.
    """
    if not rles:
        return []
    height, width = rles[0]["size"]
    iterations = max(round(DISTANCE * math.hypot(height, width)), 1)
    owners, columns, tops, bottoms = decode_runs(rles).columns()
    bounds = np.searchsorted(owners, np.arange(len(rles) + 1))
    numbers, starts, ends = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        if first == last:
            continue
        x, top, bottom = columns[first:last], tops[first:last], bottoms[first:last]
        left, upper = x.min(), top.min()
        # With a rim of nothing, which the border of the image is too.
        mask = np.zeros((bottom.max() - upper + 2, x.max() - left + 3), dtype=np.uint8)
        rows, piece = ranges(top - upper + 1, bottom - upper + 1)
        mask[rows, (x - left + 1)[piece]] = 1
        edge = mask - cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=iterations)
        steps = np.diff(edge.T.astype(np.int8), axis=1)  # down the columns
        for step, found in ((1, starts), (-1, ends)):
            column, row = np.nonzero(steps == step)
            found.append((column + left - 1) * height + row + upper)
        numbers.append(np.full(len(starts[-1]), number))
    sizes = np.broadcast_to(np.array([height, width], dtype=np.int64), (len(rles), 2))
    return encode_runs(join_runs(*map(np.concatenate, (numbers, starts, ends)), sizes))


def boundary_precision_and_recall(
    dataset: dict[str, Any], detections: list[dict[str, Any]], max_detections: int
) -> tuple[np.ndarray, np.ndarray]:
    """Run COCO's matching and accumulation with the IoU of boundaries.

    Args:
        dataset, detections, max_detections: as for `precision_and_recall` of masks.

    Returns:
        precision [T, R, K, A] and recall [T, K, A], as of `precision_and_recall`.
    """
    contents = map(_with_boundaries, coco_results(dataset, detections, "segm"))
    evaluation = run_evaluation(COCO, _BoundaryEval, dataset, contents, "segm", max_detections)
    return evaluation.eval["precision"][..., 0], evaluation.eval["recall"][..., 0]


def _with_boundaries(annotations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for annotation in annotations:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    return [
        {**annotation, "boundary": boundary}
        for group in by_image.values()
        for annotation, boundary in zip(group, boundary_rles([each["segmentation"] for each in group]), strict=True)
    ]


class _BoundaryEval(COCOeval):
    """pycocotools' evaluation with other IoUs, and with a matching whose time does not grow with D x G in Python."""

    def computeIoU(self, imgId: int, catId: int) -> Any:
        ious = super().computeIoU(imgId, catId)
        if len(ious) == 0:
            return ious
        truth, found = self._gts[imgId, catId], self._dts[imgId, catId]
        order = _by_score(found)[: self.params.maxDets[-1]]
        pairs = [found[index]["boundary"] for index in order], [each["boundary"] for each in truth]
        return np.minimum(ious, coco_mask.iou(*pairs, [int(each["iscrowd"]) for each in truth]))

    def evaluateImg(self, imgId: int, catId: int, aRng: Sequence[float], maxDet: int) -> dict[str, Any] | None:
        truth, found = self._gts[imgId, catId], self._dts[imgId, catId]
        if not truth and not found:
            return None
        ignored = np.array([bool(each["ignore"]) for each in truth], dtype=bool) | _outside(truth, aRng)
        order = np.argsort(ignored, kind="stable")
        truth, ignored = [truth[index] for index in order], ignored[order]
        found = [found[index] for index in _by_score(found)[:maxDet]]
        crowd = np.array([bool(each["iscrowd"]) for each in truth], dtype=bool)
        ious = np.reshape(self.ious[imgId, catId], (-1, len(truth)))[: len(found)] if truth and found else []
        shapes = (len(self.params.iouThrs), len(found)), (len(self.params.iouThrs), len(truth))
        found_matches, truth_matches = map(np.zeros, shapes)
        found_ignored = np.zeros(shapes[0], dtype=bool)
        for row, threshold in enumerate(self.params.iouThrs):
            if len(ious):
                for index, match in _match(ious[:, order], min(threshold, 1 - 1e-10), ignored, crowd):
                    found_matches[row, index], found_ignored[row, index] = truth[match]["id"], ignored[match]
                    truth_matches[row, match] = found[index]["id"]
        return {
            "image_id": imgId,
            "category_id": catId,
            "aRng": aRng,
            "maxDet": maxDet,
            "dtIds": [each["id"] for each in found],
            "gtIds": [each["id"] for each in truth],
            "dtMatches": found_matches,
            "gtMatches": truth_matches,
            "dtScores": [each["score"] for each in found],
            "gtIgnore": ignored.astype(int),
            "dtIgnore": found_ignored | ((found_matches == 0) & _outside(found, aRng)),
        }


def _match(ious: np.ndarray, threshold: float, ignored: np.ndarray, crowd: np.ndarray) -> Iterator[tuple[int, int]]:
    """COCO's matching: each detection in turn takes the best free object, one that is ignored only where no other is.

    Args:
        ious: [D, G], the detections by falling score.
        threshold: least IoU of a pair.
        ignored, crowd: [G] flags; any number of detections can take a crowd.

    Yields:
        Detection and object of each pair.
    """
    free = np.ones(ious.shape[1], dtype=bool)
    for index in np.flatnonzero((ious >= threshold).any(axis=1)):
        fitting = (ious[index] >= threshold) & (free | crowd)
        candidates = np.flatnonzero(fitting & ~ignored) if (fitting & ~ignored).any() else np.flatnonzero(fitting)
        if len(candidates):
            match = candidates[::-1][ious[index, candidates[::-1]].argmax()]  # of equals the last
            free[match] = False
            yield int(index), int(match)


def _by_score(found: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.argsort([-each["score"] for each in found], kind="stable")


def _outside(entries: Sequence[dict[str, Any]], limits: Sequence[float]) -> np.ndarray:
    return np.array([not limits[0] <= each["area"] <= limits[1] for each in entries], dtype=bool)
