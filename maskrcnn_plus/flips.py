"""Test-time flips: an image is seen in several orientations, and what is found in them becomes one result.

As in Detectron2's `GeneralizedRCNNWithTTA`, the boxes come first, and masks are the mean over all orientations of the
masks in one and the same box. Its boxes are those of the best score of any; here they are the mean (`merge_flips`).

Shape shorthand: F orientations, N boxes of one image, xyxy in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import nn

from maskrcnn_plus.roi.box_predictor import last_box_predictor

__all__ = ["ORIENTATIONS", "detect_flipped", "merge_flips"]

ORIENTATIONS = {1: ((),), 2: ((), (-1,)), 4: ((), (-1,), (-2,), (-2, -1))}
"""By their number, the dimensions of [..., H, W] that are flipped: none, x, y, both."""

_SAME = 0.5  # IoU from which boxes of two orientations are of one object


def detect_flipped(model: nn.Module, flips: int, image: dict[str, Any], given: Instances | None = None) -> Instances:
    """Detect the objects of an image in several orientations.

    Args:
        model: a `GeneralizedRCNN` in evaluation mode.
        flips: a key of `ORIENTATIONS`.
        image: one of its inputs.
        given: boxes and classes that are known, as of `GeneralizedRCNN.inference`.

    Returns:
        As `GeneralizedRCNN.inference` without post-processing gives for the image.
    """
    orientations = ORIENTATIONS[flips]
    images = model.preprocess_image([{**image, "image": image["image"].flip(dims)} for dims in orientations])
    features = model.backbone(images.tensor)
    if given is None:
        proposals, _ = model.proposal_generator(images, features, None)
        found = model.roi_heads._forward_box(features, proposals)
        predictor = last_box_predictor(model.roi_heads)
        found = [_flip(each, dims) for each, dims in zip(found, orientations, strict=True)]
        given = merge_flips(
            found, predictor.test_score_thresh, predictor.test_nms_thresh, predictor.test_topk_per_image
        )
    results = model.roi_heads.forward_with_given_boxes(
        features, [_flip(given.to(model.device), dims) for dims in orientations]
    )
    results = [_flip(each, dims) for each, dims in zip(results, orientations, strict=True)]
    for name in {"pred_masks", "scores"} & results[0].get_fields().keys():  # a mask head may know better scores
        results[0].set(name, torch.stack([each.get(name) for each in results]).mean(dim=0))
    return results[0]


def merge_flips(found: Sequence[Instances], min_score: float, max_iou: float, limit: int) -> Instances:
    """Make one set of boxes of those of several orientations.

    The best box first, the boxes of its class that overlap it by an IoU of at least 0.5, the nearest of each other
    orientation, become one with it: the mean of their boxes, weighted by their scores, and the sum of their scores
    divided by F, so that what is seen in one orientation alone counts little. Source: Solovyev et al., "Weighted boxes
    fusion" (2021), Sec. 2, Eq. 1 to 5, with at most one box of each model.

    Args:
        found: F Instances of an image in its own orientation, with `pred_boxes`, `scores` and `pred_classes`.
        min_score: merged boxes of lower scores are dropped.
        max_iou: of two merged boxes of a class that overlap by more the better stays.
        limit: most boxes.

    Returns:
        Instances with these fields, the best first.
    """
    boxes = torch.cat([each.pred_boxes.tensor for each in found])
    scores = torch.cat([each.scores for each in found])
    classes = torch.cat([each.pred_classes for each in found])
    source = np.repeat(np.arange(len(found)), [len(each) for each in found])
    near = pairwise_iou(Boxes(boxes), Boxes(boxes)).where(classes[:, None] == classes, 0).cpu().numpy()  # [N, N]
    rows, columns = np.nonzero(near >= _SAME)
    columns = columns[np.lexsort((-near[rows, columns], rows))]
    neighbours = np.split(columns, np.bincount(rows, minlength=len(near)).cumsum()[:-1])  # the nearest first
    group = np.full(len(boxes), -1)
    for k in scores.argsort(descending=True, stable=True).tolist():
        if group[k] < 0:
            group[k], seen = k, {source[k]}
            for other in neighbours[k]:
                if group[other] < 0 and source[other] not in seen:
                    group[other] = k
                    seen.add(source[other])
    index = torch.from_numpy(group).to(boxes.device)
    total = torch.zeros_like(scores).index_add_(0, index, scores)
    weighted = torch.zeros_like(boxes).index_add_(0, index, boxes * scores[:, None])
    kept = torch.nonzero(total > max(min_score, 0) * len(found))[:, 0]
    merged, mean = weighted[kept] / total[kept, None], total[kept] / len(found)
    best = batched_nms(merged, mean, classes[kept], max_iou)[:limit]
    return Instances(
        found[0].image_size, pred_boxes=Boxes(merged[best]), scores=mean[best], pred_classes=classes[kept][best]
    )


def _flip(instances: Instances, dims: Sequence[int]) -> Instances:
    """The same in the image with some dimensions flipped; boxes and masks change, the other fields stay."""
    height, width = instances.image_size
    fields = dict(instances.get_fields())
    x0, y0, x1, y1 = fields["pred_boxes"].tensor.unbind(dim=1)
    if -1 in dims:
        x0, x1 = width - x1, width - x0
    if -2 in dims:
        y0, y1 = height - y1, height - y0
    fields["pred_boxes"] = Boxes(torch.stack([x0, y0, x1, y1], dim=1))
    if "pred_masks" in fields:
        fields["pred_masks"] = fields["pred_masks"].flip(dims)
    return Instances(instances.image_size, **fields)
