"""Detectron2's class and box predictor with classes that exist only in the softmax, a least size of boxes, and
Soft-NMS.

The first two are torchvision's (models/detection/roi_heads.py, `postprocess_detections`): its COCO models have logits
for the category ids that COCO never used, and it drops boxes thinner than a hundredth of a pixel.

Shorthand: N images, R RoIs of all images, R_i of image i, K classes, U unused classes.
"""

from __future__ import annotations

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor, nn

from maskrcnn_plus.roi.soft_nms import SOFT_NMS_METHODS, soft_nms

# No IoU is above it, whatever the rounding.
_NO_NMS = 2.0


def last_box_predictor(roi_heads: nn.Module | None) -> nn.Module | None:
    """The box predictor whose thresholds decide, of a cascade the last one; None where there is none."""
    predictor = getattr(roi_heads, "box_predictor", None)
    return predictor[-1] if isinstance(predictor, nn.ModuleList) else predictor


class FastRCNNOutput(FastRCNNOutputLayers):
    """Drop-in for `FastRCNNOutputLayers`; the rows of `cls_score` are K classes, the background, U unused classes.

    What a crowd needs of Detectron2's arguments: `test_topk_per_image` no lower than the most objects of an image (its
    100 cuts off the rest; the RPN must propose more still); `test_nms_thresh` just above the IoU that the boxes of two
    neighbours reach (0.3 to 0.5 for nuclei, which touch but do not hide each other; 0.6 to 0.7, or Soft-NMS, where
    objects do); `test_score_thresh` low (0.05) where an AP is measured, since what it drops never comes back.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_unused_classes: int = 0,
        min_box_size: float = 0.0,
        soft_nms_method: str = "",
        soft_nms_sigma: float = 0.5,
        **kwargs,
    ) -> None:
        """Build the two layers.

        Args:
            input_shape: of the features of a box.
            num_unused_classes: U; logits that take part in the softmax, but are never detected.
            min_box_size: a detection goes whose clipped box has a side below it, pixels of the network's input.
            soft_nms_method: "" for NMS; "linear" or "gaussian" for Soft-NMS, which lowers the scores of boxes that a
                better one overlaps and drops them at `test_score_thresh`. "linear" begins at `test_nms_thresh`.
            soft_nms_sigma: of "gaussian"; the lower, the harder.
            **kwargs: those of `FastRCNNOutputLayers`.

        Raises:
            ValueError: a number is negative, there is no such `soft_nms_method`, or the classes have no softmax.
        """
        super().__init__(input_shape, **kwargs)
        if num_unused_classes < 0 or min_box_size < 0:
            raise ValueError(
                "num_unused_classes and min_box_size must not be negative, "
                f"got {num_unused_classes} and {min_box_size}."
            )
        if soft_nms_method not in ("", *SOFT_NMS_METHODS) or soft_nms_sigma <= 0:
            raise ValueError(
                f'soft_nms_method must be "" (plain NMS) or one of {", ".join(SOFT_NMS_METHODS)}, and soft_nms_sigma '
                f"positive, got {soft_nms_method!r} and {soft_nms_sigma}."
            )
        self.num_unused_classes = num_unused_classes
        self.min_box_size = min_box_size
        self.soft_nms_method = soft_nms_method
        self.soft_nms_sigma = soft_nms_sigma
        if num_unused_classes:
            if getattr(self, "use_sigmoid_ce", False):  # of newer Detectron2s
                raise ValueError("num_unused_classes is for a softmax over the classes: set use_sigmoid_ce=False.")
            self.cls_score = nn.Linear(self.cls_score.in_features, self.num_classes + 1 + num_unused_classes)
            nn.init.normal_(self.cls_score.weight, std=0.01)
            nn.init.zeros_(self.cls_score.bias)

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """Detectron2's losses, with the unused classes in the softmax.

        Args:
            predictions: logits [R, K + 1 + U] and box deltas.
            proposals: N Instances with `proposal_boxes`, `gt_boxes` and `gt_classes`.

        Returns:
            `loss_cls` and `loss_box_reg`.
        """
        logits, deltas = predictions
        used = self._used(logits)
        losses = super().losses((used, deltas), proposals)
        if self.num_unused_classes:
            # -log softmax is logsumexp - logit: what the unused classes add does not depend on the true class.
            added = torch.logsumexp(logits.float(), dim=1) - torch.logsumexp(used.float(), dim=1)  # [R]
            weight = self.loss_weight.get("loss_cls", 1.0)
            losses["loss_cls"] = losses["loss_cls"] + weight * added.sum() / max(len(added), 1)
        return losses

    def predict_probs(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> list[Tensor]:
        """The probabilities of the classes and the background, which add up to less than 1 with unused classes.

        Args:
            predictions: logits [R, K + 1 + U] and box deltas.
            proposals: N Instances of R_i boxes.

        Returns:
            N tensors [R_i, K + 1].
        """
        return [self._used(probs) for probs in super().predict_probs(predictions, proposals)]

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Choose the detections of each image.

        Args:
            predictions: logits [R, K + 1 + U] and box deltas.
            proposals: N Instances with `proposal_boxes`.

        Returns:
            N Instances with `pred_boxes`, `scores` and `pred_classes`, the best first, and the N indices of the
            proposals that they came from.
        """
        if self.min_box_size == 0 and not self.soft_nms_method:
            return super().inference(predictions, proposals)
        boxes = self.predict_boxes(predictions, proposals)
        scores = self.predict_probs(predictions, proposals)
        sizes = [proposal.image_size for proposal in proposals]
        if self.min_box_size > 0:
            scores = [self._suppress_small(*each) for each in zip(boxes, scores, sizes, strict=True)]
        if not self.soft_nms_method:
            return fast_rcnn_inference(
                boxes, scores, sizes, self.test_score_thresh, self.test_nms_thresh, self.test_topk_per_image
            )
        candidates = fast_rcnn_inference(boxes, scores, sizes, self.test_score_thresh, _NO_NMS, -1)
        chosen = [self._soft_nms(*each) for each in zip(*candidates, strict=True)]
        return [instances for instances, _ in chosen], [indices for _, indices in chosen]

    def _soft_nms(self, candidates: Instances, indices: Tensor) -> tuple[Instances, Tensor]:
        """The detections of an image and the proposals that they came from, of all those above the score threshold."""
        keep, scores = soft_nms(
            candidates.pred_boxes.tensor,
            candidates.scores,
            candidates.pred_classes,
            method=self.soft_nms_method,
            iou_threshold=self.test_nms_thresh,
            sigma=self.soft_nms_sigma,
            score_threshold=max(self.test_score_thresh, 0.0),
            max_kept=self.test_topk_per_image,
        )
        detections = candidates[keep]
        detections.scores = scores
        return detections, indices[keep]

    def _used(self, rows: Tensor) -> Tensor:
        """Logits or probabilities [R, K + 1 + U] without the unused classes."""
        return rows[:, : self.num_classes + 1]

    def _suppress_small(self, boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """Scores [R_i, K + 1] with -1 where the box, of [R_i, K * 4] or [R_i, 4], is too small within the image."""
        height, width = size
        corners = boxes.unflatten(1, (-1, 2, 2))  # [R_i, K or 1, 2, (x, y)]
        corners = torch.minimum(corners.clamp(min=0), corners.new_tensor([width, height]))
        sides = corners[:, :, 1] - corners[:, :, 0]  # [R_i, K or 1, 2]
        small = (sides < self.min_box_size).any(dim=2)  # [R_i, K or 1]
        classes = scores[:, :-1].masked_fill(small, -1.0)
        return torch.cat([classes, scores[:, -1:]], dim=1)
