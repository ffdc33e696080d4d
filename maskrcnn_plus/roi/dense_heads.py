"""Detectron2's RoI heads for images of hundreds of objects.

`StandardROIHeads` copies the whole ground-truth mask of every sampled RoI when masks are `BitMasks` (R x H x W bytes)
and trains the mask head on every positive RoI. Here RoIs share the masks, and the mask head has a limit of its own.

Shorthand: N images, R sampled RoIs of an image, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    StandardROIHeads,
    select_foreground_proposals,
)
from detectron2.projects.point_rend import PointRendMaskHead
from detectron2.structures import Instances
from torch import Tensor, nn

from maskrcnn_plus.config import with_defaults
from maskrcnn_plus.masks.adapters import adapt_masks
from maskrcnn_plus.masks.soft_masks import SoftMasks
from maskrcnn_plus.roi.box_predictor import FastRCNNOutput
from maskrcnn_plus.roi.pooler import PyramidROIAlign
from maskrcnn_plus.scripting import NotScriptable


@ROI_HEADS_REGISTRY.register()
class DenseROIHeads(NotScriptable, StandardROIHeads):
    """Drop-in for `StandardROIHeads`: same weights and, with the options at their defaults, same losses and results.

    The memory of a training step does not grow with image size x RoIs: a RoI of `BitMasks` or `LabelMapMasks` is an
    index, one of `PolygonMasks` its polygon.

    Of yacs configs it reads `MODEL.ROI_HEADS.MASK_BATCH_SIZE_PER_IMAGE` and `SOFT_MASK_TARGETS`, and for its box
    predictor, which is a `FastRCNNOutput`, `SOFT_NMS_METHOD` and `SOFT_NMS_SIGMA`. Poolers of the types "ROIAlign" and
    "ROIAlignV2" are `PyramidROIAlign`s.
    """

    @configurable
    def __init__(self, *, mask_batch_size_per_image: int = 0, soft_mask_targets: bool = False, **kwargs: Any) -> None:
        """Take the parts.

        Args:
            mask_batch_size_per_image: how many positive RoIs of an image train the mask head at most, chosen at random;
                0 takes all. The box head learns from `batch_size_per_image`, of which `positive_fraction` are positive.
            soft_mask_targets: targets of the mask head say how much of each cell the mask covers, instead of 0 or 1.
            **kwargs: those of `StandardROIHeads`.

        Raises:
            ValueError: the limit is negative, or the mask head has no targets that could be soft.
        """
        super().__init__(**kwargs)
        if soft_mask_targets and isinstance(getattr(self, "mask_head", None), PointRendMaskHead):
            raise ValueError(
                f"soft_mask_targets is not for {type(self.mask_head).__name__}, which learns from points of masks: "
                "set it to false (yacs: MODEL.ROI_HEADS.SOFT_MASK_TARGETS)."
            )
        if mask_batch_size_per_image < 0:
            raise ValueError(
                f"mask_batch_size_per_image must be at least 1, or 0 for all, got {mask_batch_size_per_image}."
            )
        self.mask_batch_size_per_image = mask_batch_size_per_image
        self.soft_mask_targets = soft_mask_targets

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Arguments of `__init__` from a yacs config, with this package's keys or without."""
        arguments = super().from_config(cfg, input_shape)
        poolers = {name: part for name, part in arguments.items() if name.endswith("_pooler")}
        keys = with_defaults(cfg).MODEL.ROI_HEADS
        return {
            **arguments,
            **{name: PyramidROIAlign.from_pooler(pooler) for name, pooler in poolers.items()},
            "mask_batch_size_per_image": keys.MASK_BATCH_SIZE_PER_IMAGE,
            "soft_mask_targets": keys.SOFT_MASK_TARGETS,
        }

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        parts = super()._init_box_head(cfg, input_shape)
        keys = with_defaults(cfg).MODEL.ROI_HEADS
        # yacs has no key for its class. On "meta" no weights are drawn: it takes those of Detectron2's.
        with torch.device("meta"):
            predictor = FastRCNNOutput(
                cfg,
                parts["box_head"].output_shape,
                soft_nms_method=keys.SOFT_NMS_METHOD,
                soft_nms_sigma=keys.SOFT_NMS_SIGMA,
            )
        predictor.load_state_dict(parts["box_predictor"].state_dict(), assign=True)
        parts["box_predictor"] = predictor
        return parts

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """Detectron2's sampling, with masks that cost nothing to index.

        Args:
            proposals: N Instances with `proposal_boxes` and `objectness_logits`.
            targets: N Instances with `gt_boxes`, `gt_classes` and, for a mask head, `gt_masks`; they stay as they are.

        Returns:
            N Instances of R proposals with `gt_classes` (K is background) and, where the image has objects, the other
            fields of their targets.
        """
        return super().label_and_sample_proposals(proposals, [self._adapt_masks(each) for each in targets])

    def _forward_mask(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        if self.training and self.mask_on and self.mask_batch_size_per_image:
            positives, _ = select_foreground_proposals(instances, self.num_classes)
            instances = [self._sample(each) for each in positives]
        return super()._forward_mask(features, instances)

    def _adapt_masks(self, targets: Instances) -> Instances:
        if not targets.has("gt_masks"):
            return targets
        fields = dict(targets.get_fields())
        masks = adapt_masks(fields["gt_masks"], targets.image_size)
        fields["gt_masks"] = SoftMasks(masks) if self.soft_mask_targets else masks
        return Instances(targets.image_size, **fields)

    def _sample(self, positives: Instances) -> Instances:
        """At most `mask_batch_size_per_image` of an image's positive RoIs."""
        if len(positives) <= self.mask_batch_size_per_image:
            return positives
        order = torch.randperm(len(positives), device=positives.gt_classes.device)
        return positives[order[: self.mask_batch_size_per_image]]


@ROI_HEADS_REGISTRY.register()
class DenseCascadeROIHeads(CascadeROIHeads, DenseROIHeads):
    """Drop-in for `CascadeROIHeads` (Cascade R-CNN, Cai and Vasconcelos, 2018) with the masks of `DenseROIHeads`.

    Its box predictors are Detectron2's in yacs configs. `CascadeROIHeads` chooses its detections by plain NMS.
    """

    @configurable
    def __init__(self, *, box_predictors: list[nn.Module], **kwargs: Any) -> None:
        """Take the parts.

        Args:
            box_predictors: one a stage.
            **kwargs: those of `CascadeROIHeads` and of `DenseROIHeads`.

        Raises:
            ValueError: a predictor is set to Soft-NMS, or as `DenseROIHeads`.
        """
        if any(getattr(predictor, "soft_nms_method", "") for predictor in box_predictors):
            raise ValueError("DenseCascadeROIHeads has no Soft-NMS: leave soft_nms_method empty.")
        super().__init__(box_predictors=box_predictors, **kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Arguments of `__init__` from a yacs config, as `DenseROIHeads`."""
        if with_defaults(cfg).MODEL.ROI_HEADS.SOFT_NMS_METHOD:
            raise ValueError("DenseCascadeROIHeads has no Soft-NMS: leave MODEL.ROI_HEADS.SOFT_NMS_METHOD empty.")
        return super().from_config(cfg, input_shape)
