"""Cascade RPN (Vu et al., "Cascade RPN: Delving into High-Quality Region Proposal Network with Adaptive Convolution",
2019): one anchor a place, regressed twice, with objectness for the second time alone.

The first stage is a dilated convolution. It learns from the places in the middle of an object, whatever the overlap of
their anchors. The second stage convolves the first one's features at the grid of the anchor that the first stage made,
and learns from the anchors that overlap an object. Both learn by the IoU. As in the paper, no gradient flows through
anchors and offsets, and the features that go from stage to stage have theirs.

Shape shorthand: N images, L levels, C channels, map of H_l x W_l places, P_l = H_l * W_l, R = sum of P_l; M objects of
an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from maskrcnn_plus.config import with_defaults
from maskrcnn_plus.rpn.adaptive_conv import AdaptiveConv2d
from maskrcnn_plus.rpn.batched import BatchedRPN, clip_to_images
from maskrcnn_plus.rpn.cascade_targets import box_iou_loss, paint_regions

__all__ = ["CascadeRPN", "CascadeRPNHead", "square_anchors"]

_LOSS_WEIGHT = {"loss_rpn_initial_loc": 7.0, "loss_rpn_cls": 0.7, "loss_rpn_loc": 7.0}


def square_anchors(strides: Sequence[int], anchor_scale: float = 8.0, offset: float = 0.0) -> DefaultAnchorGenerator:
    """One square anchor a place, `anchor_scale` strides wide.

    Args:
        strides: of the L maps in pixels.
        anchor_scale: 8 is the paper's, for COCO. An object is learned at the level whose anchors come next to its size.
        offset: of the first anchor's centre from the corner of the image, in strides.
    """
    sizes = [[float(anchor_scale * stride)] for stride in strides]
    return DefaultAnchorGenerator(sizes=sizes, aspect_ratios=[1.0], strides=list(strides), offset=offset)


class CascadeRPNHead(nn.Module):
    """Layers of both stages, the same for all levels."""

    def __init__(self, in_channels: int, dilation: int = 3) -> None:
        """Build the layers.

        Args:
            in_channels: C of the maps, which all inner maps have too.
            dilation: of the first stage's convolution.
        """
        super().__init__()
        self.initial_conv = nn.Conv2d(in_channels, in_channels, 3, padding=dilation, dilation=dilation)
        self.initial_deltas = nn.Conv2d(in_channels, 4, 1)
        self.conv = AdaptiveConv2d(in_channels, in_channels)
        self.objectness_logits = nn.Conv2d(in_channels, 1, 1)
        self.anchor_deltas = nn.Conv2d(in_channels, 4, 1)
        for layer in (self.initial_conv, self.initial_deltas, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def initial(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The first stage at one level: [N, C, H, W] -> features of the same shape and deltas [N, P, 4]."""
        features = F.relu(self.initial_conv(features))
        return features, _flatten_places(self.initial_deltas(features))

    def forward(self, features: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """The second stage at one level.

        Args:
            features: [N, C, H, W] of the first stage.
            anchors: [N, P, 4] xyxy in places of the map.

        Returns:
            Objectness logits [N, P] and deltas [N, P, 4].
        """
        features = F.relu(self.conv(features, anchors))
        logits, deltas = self.objectness_logits(features), self.anchor_deltas(features)
        return _flatten_places(logits).squeeze(2), _flatten_places(deltas)


@PROPOSAL_GENERATOR_REGISTRY.register()
class CascadeRPN(BatchedRPN):
    """Drop-in for Detectron2's RPN whose boxes are regressed twice, each time from features at the right places."""

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        head: CascadeRPNHead,
        anchor_generator: DefaultAnchorGenerator,
        anchor_matcher: Matcher,
        initial_box2box_transform: Box2BoxTransform,
        box2box_transform: Box2BoxTransform,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_topk: tuple[int, int],
        post_nms_topk: tuple[int, int],
        nms_thresh: float = 0.7,
        min_box_size: float = 0.0,
        center_ratio: float = 0.2,
        ignore_ratio: float = 0.5,
        min_positive_iou: float = 0.3,
        box_reg_loss_type: str = "iou",
        loss_weight: float | Mapping[str, float] | None = None,
    ) -> None:
        """Take the parts; those that are not explained here are `RPN`'s.

        Args:
            head: the layers.
            anchor_generator: makes one anchor a place: `square_anchors`.
            anchor_matcher: labels the anchors of the second stage, those that the first stage made.
            initial_box2box_transform, box2box_transform: of the first and the second stage; the reference's weights are
                (10, 10, 2, 2) and (20, 20, 10, 10).
            center_ratio: part of an object's width and height in which the first stage learns.
            ignore_ratio: part in which, around that, a place counts neither for this object nor for another.
            min_positive_iou: an anchor below it is background, even if it is an object's best.
            box_reg_loss_type: "iou" or "giou", of both stages.
            loss_weight: of all losses, or by name; the default is the reference's 7 of both box losses
                (`loss_rpn_initial_loc`, `loss_rpn_loc`) and 0.7 of `loss_rpn_cls`.

        Raises:
            ValueError: more than one anchor a place, ratios out of order, or an unknown loss.
        """
        if set(anchor_generator.num_anchors) != {1}:
            raise ValueError(
                f"CascadeRPN has one anchor a place, but anchor_generator makes {anchor_generator.num_anchors}: give "
                "one size a level and one aspect ratio, as square_anchors does."
            )
        if not 0 < center_ratio <= ignore_ratio <= 1:
            raise ValueError(
                f"center_ratio and ignore_ratio must be 0 < center <= ignore <= 1, not {center_ratio}, {ignore_ratio}."
            )
        if box_reg_loss_type not in ("iou", "giou"):
            raise ValueError(f'box_reg_loss_type must be "iou" or "giou", not {box_reg_loss_type!r}.')
        if not isinstance(loss_weight, Mapping):
            loss_weight = _LOSS_WEIGHT if loss_weight is None else dict.fromkeys(_LOSS_WEIGHT, float(loss_weight))
        if unknown := sorted(set(loss_weight) - set(_LOSS_WEIGHT)):
            raise ValueError(f"loss_weight names {', '.join(unknown)}; the losses are {', '.join(_LOSS_WEIGHT)}.")
        super().__init__(
            in_features=in_features,
            head=head,
            anchor_generator=anchor_generator,
            anchor_matcher=anchor_matcher,
            box2box_transform=box2box_transform,
            batch_size_per_image=batch_size_per_image,
            positive_fraction=positive_fraction,
            pre_nms_topk=pre_nms_topk,
            post_nms_topk=post_nms_topk,
            nms_thresh=nms_thresh,
            min_box_size=min_box_size,
            loss_weight={**_LOSS_WEIGHT, **loss_weight},
            box_reg_loss_type=box_reg_loss_type,
        )
        self.initial_box2box_transform = initial_box2box_transform
        self.center_ratio, self.ignore_ratio = center_ratio, ignore_ratio
        self.min_positive_iou = min_positive_iou

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """The arguments from `cfg.MODEL.RPN` and `cfg.MODEL.CASCADE_RPN`."""
        rpn, cascade = cfg.MODEL.RPN, with_defaults(cfg).MODEL.CASCADE_RPN
        shapes = [input_shape[name] for name in rpn.IN_FEATURES]
        if len({shape.channels for shape in shapes}) > 1:
            raise ValueError(f"MODEL.RPN.IN_FEATURES must have the same number of channels: {shapes}.")
        return {
            "in_features": rpn.IN_FEATURES,
            "head": CascadeRPNHead(shapes[0].channels),
            "anchor_generator": square_anchors(
                [shape.stride for shape in shapes], cascade.ANCHOR_SCALE, cfg.MODEL.ANCHOR_GENERATOR.OFFSET
            ),
            "anchor_matcher": Matcher(rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, allow_low_quality_matches=True),
            "initial_box2box_transform": Box2BoxTransform(weights=tuple(cascade.INITIAL_BBOX_REG_WEIGHTS)),
            "box2box_transform": Box2BoxTransform(weights=tuple(cascade.BBOX_REG_WEIGHTS)),
            "batch_size_per_image": rpn.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": rpn.POSITIVE_FRACTION,
            "pre_nms_topk": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
            "nms_thresh": rpn.NMS_THRESH,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "center_ratio": cascade.CENTER_RATIO,
            "ignore_ratio": cascade.IGNORE_RATIO,
            "min_positive_iou": cascade.MIN_POSITIVE_IOU,
            "box_reg_loss_type": cascade.BBOX_REG_LOSS_TYPE,
            "loss_weight": {
                "loss_rpn_initial_loc": cascade.INITIAL_BBOX_REG_LOSS_WEIGHT,
                "loss_rpn_cls": cascade.CLS_LOSS_WEIGHT,
                "loss_rpn_loc": cascade.BBOX_REG_LOSS_WEIGHT,
            },
        }

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Propose boxes.

        Args:
            images: N images; only their sizes count.
            features: maps [N, C, H_l, W_l] by name.
            gt_instances: N Instances with `gt_boxes`, for training.

        Returns:
            N Instances with `proposal_boxes` and `objectness_logits`, the best first; and the losses, none but in
            training.

        Raises:
            ValueError: in training without ground truth.
            FloatingPointError: in training, where a prediction is not finite.
        """
        maps = [features[name] for name in self.in_features]
        first_anchors = [anchors.tensor for anchors in self.anchor_generator(maps)]  # L of [P_l, 4]
        maps, initial_deltas = zip(*map(self.rpn_head.initial, maps), strict=True)
        anchors = self._refine(first_anchors, initial_deltas, images.image_sizes)
        predictions = []
        for features_l, anchors_l, first_l, stride in zip(
            maps, anchors, first_anchors, self.anchor_generator.strides, strict=True
        ):
            origin = (first_l[0, :2] + first_l[0, 2:]).repeat(2) / 2
            predictions.append(self.rpn_head(features_l, (anchors_l - origin) / stride))
        logits, deltas = zip(*predictions, strict=True)

        losses = {}
        if self.training:
            if gt_instances is None:
                raise ValueError("CascadeRPN needs gt_instances in training.")
            gt_boxes = [instances.gt_boxes for instances in gt_instances]
            map_sizes = [features_l.shape[-2:] for features_l in maps]
            losses = self._initial_losses(first_anchors, initial_deltas, gt_boxes, map_sizes)
            losses |= self._final_losses(anchors, logits, deltas, gt_boxes)
            losses = {name: value * self.loss_weight[name] for name, value in losses.items()}
        return self.select_proposals(anchors, logits, deltas, images.image_sizes), losses

    @torch.no_grad()
    def _refine(
        self, first_anchors: list[Tensor], deltas: Sequence[Tensor], image_sizes: list[tuple[int, int]]
    ) -> list[Tensor]:
        """The first stage's boxes, L of [N, P_l, 4], within their images."""
        anchors = []
        for first_l, deltas_l in zip(first_anchors, deltas, strict=True):
            first_l = first_l.repeat(len(deltas_l), 1)  # [N * P_l, 4]
            boxes = self.initial_box2box_transform.apply_deltas(deltas_l.flatten(0, 1), first_l).view(deltas_l.shape)
            anchors.append(clip_to_images(boxes, image_sizes))
        return anchors

    def _initial_losses(
        self,
        first_anchors: list[Tensor],
        deltas: Sequence[Tensor],
        gt_boxes: list[Boxes],
        map_sizes: list[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """Mean box loss over the places in the middle of objects.

        The reference divides by a 200th of all places, its estimate of their number.
        """
        # A GPU is waited for once, for all images.
        corners = torch.stack([anchors_l[0] for anchors_l in first_anchors])  # [L, 4]
        numbers = torch.cat([corners, *(boxes.tensor for boxes in gt_boxes)]).detach().cpu().numpy()
        first, *boxes = np.split(numbers, np.cumsum([len(corners), *map(len, gt_boxes[:-1])]))
        options = (map_sizes, self.anchor_generator.strides, self.center_ratio, self.ignore_ratio)
        targets = np.stack([paint_regions(each, first, *options) for each in boxes])
        targets = torch.from_numpy(targets).to(corners.device)  # [N, R]
        positive = targets >= 0
        matched = [boxes.tensor[chosen[chosen >= 0]] for boxes, chosen in zip(gt_boxes, targets, strict=True)]
        anchors = torch.cat(first_anchors).expand(len(gt_boxes), -1, -1)[positive]  # [N, R, 4] -> [positives, 4]
        boxes = self.initial_box2box_transform.apply_deltas(torch.cat(list(deltas), dim=1)[positive], anchors)
        loss = box_iou_loss(boxes, torch.cat(matched), self.box_reg_loss_type).sum()
        get_event_storage().put_scalar("rpn/num_initial_pos_anchors", len(anchors) / len(gt_boxes))
        return {"loss_rpn_initial_loc": loss / max(len(anchors), 1)}

    def _final_losses(
        self, anchors: list[Tensor], logits: Sequence[Tensor], deltas: Sequence[Tensor], gt_boxes: list[Boxes]
    ) -> dict[str, Tensor]:
        """Losses over a sample of the second stage's anchors, in proportion to the size of a full sample."""
        anchors = torch.cat(anchors, dim=1)  # [N, R, 4]
        labelled = [self._label(*each) for each in zip(anchors, gt_boxes, strict=True)]
        labels, matched = (torch.stack(each) for each in zip(*labelled, strict=True))  # [N, R], [N, R, 4]
        positive, sampled = labels == 1, labels >= 0
        logits = torch.cat(list(logits), dim=1)[sampled]
        objectness = F.binary_cross_entropy_with_logits(logits, labels[sampled].to(logits.dtype), reduction="sum")
        boxes = self.box2box_transform.apply_deltas(torch.cat(list(deltas), dim=1)[positive], anchors[positive])
        loss = box_iou_loss(boxes, matched[positive], self.box_reg_loss_type).sum()
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", positive.sum().item() / len(labels))
        storage.put_scalar("rpn/num_neg_anchors", (labels == 0).sum().item() / len(labels))
        normalizer = self.batch_size_per_image * len(labels)
        return {"loss_rpn_cls": objectness / normalizer, "loss_rpn_loc": loss / normalizer}

    @torch.no_grad()
    def _label(self, anchors: Tensor, gt_boxes: Boxes) -> tuple[Tensor, Tensor]:
        """Label the anchors of one image: 1, 0, or -1 where not sampled, [R]; and their objects' boxes [R, 4]."""
        ious = pairwise_iou(gt_boxes, Boxes(anchors))  # [M, R]
        matches, labels = self.anchor_matcher(ious)
        if len(gt_boxes) == 0:
            return self._subsample_labels(labels), torch.zeros_like(anchors)
        # Of an object that no anchor meets, the matcher takes all anchors for the best ones, with an IoU of 0.
        labels[(labels == 1) & (ious.amax(0) < self.min_positive_iou)] = 0
        return self._subsample_labels(labels), gt_boxes.tensor[matches]


def _flatten_places(predictions: Tensor) -> Tensor:
    """[N, K, H, W] -> [N, P, K]."""
    return predictions.flatten(2).transpose(1, 2)
