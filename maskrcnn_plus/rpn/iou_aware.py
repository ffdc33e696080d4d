"""IoU-aware RPN: proposals ranked by how well they are predicted to fit, not only by whether there is an object.

Source: Kim et al., "Learning Open-World Object Proposals without Learning to Classify" (OLN, 2021), Sec. 3: a branch
beside the classifier learns the localisation quality of the anchors that overlap an object, from a sample of its own.
Unlike there, an RPN keeps its anchors and its box deltas. The quality of a box is its IoU with its object (as in Wu et
al., "IoU-aware Single-stage Object Detector", 2019) or the centerness of its anchor (Tian et al., "FCOS", 2019, Eq. 3).

Shorthand: N images, L levels, A anchors a place, R = sum of H_l * W_l * A anchors of an image, K sampled anchors.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.structures.boxes import matched_pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_plus.arguments import check_arguments
from maskrcnn_plus.config import with_defaults
from maskrcnn_plus.rpn.batched import BatchedRPN


@RPN_HEAD_REGISTRY.register()
class IoUAwareRPNHead(StandardRPNHead):
    """Detectron2's RPN head with one more 1 x 1 convolution, for the quality; only `IoUAwareRPN` can use it."""

    @configurable
    def __init__(self, *, num_anchors: int, **kwargs) -> None:
        """Build the layers.

        Args:
            num_anchors: A.
            **kwargs: those of `StandardRPNHead`: in_channels, box_dim, conv_dims.
        """
        super().__init__(num_anchors=num_anchors, **kwargs)
        self.quality_logits = nn.Conv2d(self.objectness_logits.in_channels, num_anchors, kernel_size=1)
        nn.init.normal_(self.quality_logits.weight, std=0.01)
        nn.init.zeros_(self.quality_logits.bias)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Predict.

        Args:
            features: L maps [N, C, H_l, W_l].

        Returns:
            Logits of objectness [N, A, H_l, W_l], anchor deltas [N, A * 4, H_l, W_l] and logits of quality
            [N, A, H_l, W_l] of each level.
        """
        hidden = [self.conv(feature) for feature in features]
        return (
            [self.objectness_logits(each) for each in hidden],
            [self.anchor_deltas(each) for each in hidden],
            [self.quality_logits(each) for each in hidden],
        )


@PROPOSAL_GENERATOR_REGISTRY.register()
class IoUAwareRPN(BatchedRPN):
    """Drop-in for Detectron2's RPN with an `IoUAwareRPNHead`; its proposals are chosen like those of `BatchedRPN`."""

    @configurable
    def __init__(
        self,
        *,
        quality: str = "iou",
        score: str = "product",
        quality_loss_type: str = "bce",
        quality_smooth_l1_beta: float = 0.0,
        quality_iou_threshold: float = 0.3,
        quality_batch_size_per_image: int = 256,
        loss_weight: float | dict[str, float] = 1.0,
        **kwargs,
    ) -> None:
        """Take the parts.

        Args:
            quality: "iou" of the decoded box with its object, or "centerness" of the anchor's centre in its object.
            score: what proposals are ranked by, and their `objectness_logits`: "product", the geometric mean of the
                probabilities of objectness and quality; "quality" alone (OLN; there `loss_weight` of "loss_rpn_cls" is
                0); or "objectness" alone, as without the quality, which is learnt all the same.
            quality_loss_type: "bce" with the quality as a soft label, or "smooth_l1" on the sigmoid (OLN, with beta 0).
            quality_smooth_l1_beta: where smooth L1 turns from quadratic to linear; 0 for plain L1.
            quality_iou_threshold: anchors learn quality from this IoU with their object on, more than 0.
            quality_batch_size_per_image: the number of anchors that learn quality, drawn at random; also what the sum
                of their losses is divided by for each image.
            loss_weight: of all losses, or of each by name: "loss_rpn_cls", "loss_rpn_loc", "loss_rpn_quality"; 1 for
                one that is not named.
            **kwargs: those of `RPN`.

        Raises:
            ValueError: an unknown quality, score or loss, or a number out of range.
        """
        if isinstance(loss_weight, int | float):
            loss_weight = dict.fromkeys(("loss_rpn_cls", "loss_rpn_loc", "loss_rpn_quality"), float(loss_weight))
        super().__init__(loss_weight=loss_weight, **kwargs)
        losses, scores = ("bce", "smooth_l1"), ("product", "quality", "objectness")
        check_arguments(
            quality=(quality, quality in ("iou", "centerness"), "one of iou, centerness"),
            score=(score, score in scores, f"one of {', '.join(scores)}"),
            quality_loss_type=(quality_loss_type, quality_loss_type in losses, f"one of {', '.join(losses)}"),
            quality_iou_threshold=(quality_iou_threshold, 0 < quality_iou_threshold <= 1, "in (0, 1]"),
            quality_smooth_l1_beta=(quality_smooth_l1_beta, quality_smooth_l1_beta >= 0, "at least 0"),
            quality_batch_size_per_image=(
                quality_batch_size_per_image,
                quality_batch_size_per_image >= 1,
                "at least 1",
            ),
        )
        self.quality = quality
        self.score = score
        self.quality_loss_type = quality_loss_type
        self.quality_smooth_l1_beta = quality_smooth_l1_beta
        self.quality_iou_threshold = quality_iou_threshold
        self.quality_batch_size_per_image = quality_batch_size_per_image

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """The arguments from `cfg.MODEL.RPN` (HEAD_NAME: "IoUAwareRPNHead") and `cfg.MODEL.IOU_AWARE_RPN`."""
        own, arguments = with_defaults(cfg).MODEL.IOU_AWARE_RPN, super().from_config(cfg, input_shape)
        weights = {**arguments.pop("loss_weight"), "loss_rpn_quality": own.LOSS_WEIGHT * cfg.MODEL.RPN.LOSS_WEIGHT}
        return {
            **arguments,
            "loss_weight": weights,
            "quality": own.QUALITY,
            "score": own.SCORE,
            "quality_loss_type": own.LOSS_TYPE,
            "quality_smooth_l1_beta": own.SMOOTH_L1_BETA,
            "quality_iou_threshold": own.IOU_THRESHOLD,
            "quality_batch_size_per_image": own.BATCH_SIZE_PER_IMAGE,
        }

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Propose boxes.

        Args:
            images: N images.
            features: maps [N, C, H_l, W_l] by name.
            gt_instances: an Instances an image with `gt_boxes`; needed in training.

        Returns:
            N Instances with `proposal_boxes` and `objectness_logits`, the best first, and in training the losses
            `loss_rpn_cls`, `loss_rpn_loc` and `loss_rpn_quality`.

        Raises:
            ValueError: the head predicts no quality, or there is no ground truth in training.
            FloatingPointError: in training, where a prediction is not finite.
        """
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        predictions = self.rpn_head(maps)
        if len(predictions) != 3:
            raise ValueError(
                f"{type(self.rpn_head).__name__} predicts no quality: IoUAwareRPN needs the head IoUAwareRPNHead."
            )
        objectness, deltas, quality = predictions
        objectness = [each.permute(0, 2, 3, 1).flatten(1) for each in objectness]  # [N, H_l * W_l * A]
        quality = [each.permute(0, 2, 3, 1).flatten(1) for each in quality]  # [N, H_l * W_l * A]
        deltas = [
            each.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for each in deltas
        ]  # [N, A * 4, H_l, W_l] -> [N, H_l * W_l * A, 4]

        losses = {}
        if self.training:
            if gt_instances is None:
                raise ValueError("IoUAwareRPN needs gt_instances in training.")
            gt_labels, gt_boxes = self.label_and_sample_anchors(anchors, gt_instances)
            losses = self.losses(anchors, objectness, gt_labels, deltas, gt_boxes)
            places, targets = self.sample_quality(Boxes.cat(anchors), deltas, gt_boxes)
            get_event_storage().put_scalar("rpn/num_quality_anchors", len(targets) / len(gt_boxes))
            loss = quality_loss(cat(quality, 1)[places], targets, self.quality_loss_type, self.quality_smooth_l1_beta)
            normalizer = self.quality_batch_size_per_image * len(gt_boxes)
            losses["loss_rpn_quality"] = loss / normalizer * self.loss_weight.get("loss_rpn_quality", 1.0)
        scores = {"objectness": objectness, "quality": quality}.get(self.score)
        if scores is None:
            with torch.no_grad():
                scores = [geometric_mean_logits(*pair) for pair in zip(objectness, quality, strict=True)]
        return self.predict_proposals(anchors, scores, deltas, images.image_sizes), losses

    @torch.no_grad()
    def sample_quality(
        self, anchors: Boxes, pred_anchor_deltas: list[Tensor], gt_boxes: list[Tensor]
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Draw the anchors that learn quality, and compute what they learn.

        Args:
            anchors: R boxes.
            pred_anchor_deltas: L tensors [N, H_l * W_l * A, 4].
            gt_boxes: N tensors [R, 4], the box of the object that each anchor overlaps most.

        Returns:
            Indices ([K] images, [K] anchors), and the quality [K] in 0..1.
        """
        chosen = []
        for boxes in gt_boxes:
            # Also of anchors that are too poor to learn their box: those that Detectron2 labels 0 or -1.
            (candidates,) = (matched_pairwise_iou(anchors, Boxes(boxes)) >= self.quality_iou_threshold).nonzero(
                as_tuple=True
            )
            order = torch.randperm(len(candidates), device=candidates.device)
            chosen.append(candidates[order[: self.quality_batch_size_per_image]])
        images = torch.cat([torch.full_like(each, image) for image, each in enumerate(chosen)])
        places = torch.cat(chosen)
        objects = torch.stack(gt_boxes)[images, places]  # [K, 4]
        if self.quality == "centerness":
            return (images, places), centerness(anchors.tensor[places], objects)
        deltas = cat(pred_anchor_deltas, 1)[images, places]  # [K, 4]
        decoded = self.box2box_transform.apply_deltas(deltas, anchors.tensor[places])
        return (images, places), matched_pairwise_iou(Boxes(decoded), Boxes(objects))


def centerness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """How near the centre of each anchor is to the middle of its box.

    Args:
        anchors, boxes: [K, 4] xyxy.

    Returns:
        [K]: 1 in the middle, 0 on the border and outside, also for a box without area.
    """
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    sides = torch.stack([centers - boxes[:, :2], boxes[:, 2:] - centers])  # [2, K, 2]
    least, largest = sides.amin(0).clamp(min=0), sides.amax(0)
    return (least / largest.clamp(min=torch.finfo(largest.dtype).tiny)).prod(dim=1).sqrt()


def geometric_mean_logits(logits: Tensor, others: Tensor) -> Tensor:
    """Logit of the geometric mean of two probabilities that are given as logits.

    Args:
        logits, others: of one shape.

    Returns:
        logit(sqrt(sigmoid(logits) * sigmoid(others))), at least in float32; not finite where one of them is not.
    """
    kind = torch.promote_types(logits.dtype, torch.float32)
    logits, others = logits.to(kind), others.to(kind)
    log_mean = (F.logsigmoid(logits) + F.logsigmoid(others)) / 2
    # A mean of 1 would get the logit inf: it gets a large one. 0 * inf is NaN, so that an infinite logit stays visible.
    log_mean = log_mean.clamp(max=-torch.finfo(kind).tiny)
    return log_mean - torch.log(-torch.expm1(log_mean)) + 0 * (logits + others)


def quality_loss(logits: Tensor, targets: Tensor, loss_type: str, smooth_l1_beta: float = 0.0) -> Tensor:
    """Loss of predicted qualities, summed.

    Args:
        logits: [K].
        targets: [K] in 0..1.
        loss_type: "bce", or "smooth_l1" on the sigmoid.
        smooth_l1_beta: where smooth L1 turns from quadratic to linear; 0 for plain L1.

    Returns:
        A number; 0 that depends on `logits` where K is 0.
    """
    logits = logits.to(torch.promote_types(logits.dtype, targets.dtype))
    if loss_type == "bce":
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return F.smooth_l1_loss(logits.sigmoid(), targets, beta=smooth_l1_beta, reduction="sum")
