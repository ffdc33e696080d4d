"""Mask scoring (Huang et al., "Mask Scoring R-CNN", 2019, Sec. 3.2) around any mask head.

A second head regresses the IoU of each predicted mask with its object; a detection's score is that of its class times
that IoU. Where the paper leaves something open we follow its code: the last convolution has stride 2, the gradient
reaches the mask head through the predicted mask, and RoIs whose IoU is 0 are not learned from. Layers have the names of
MMDetection's `MaskIoUHead`.

Shorthand: N images, R RoIs of all images, R_i of image i, K classes (1: all alike), C channels, h x w features of a
RoI, S x S predicted mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY, BaseMaskRCNNHead
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_plus.config import with_defaults
from maskrcnn_plus.mask_heads.classes import get_class_rows, select_class
from maskrcnn_plus.mask_heads.targets import areas_in_boxes, mask_iou_targets, mask_targets
from maskrcnn_plus.scripting import NotScriptable


@runtime_checkable
class SplitMaskHead(Protocol):
    """A mask head that tells its predictions before its losses."""

    def mask_outputs(self, x: Tensor) -> dict[str, Tensor]:
        """Predictions for features [R, C, h, w], of which "pred_mask_logits" is [R, K, S, S]."""

    def mask_losses(self, outputs: dict[str, Tensor], instances: list[Instances]) -> dict[str, Tensor]:
        """The losses of such predictions by their names, weighted."""


class MaskIoUHead(nn.Module):
    """Regresses the IoU of a predicted mask with its object from the RoI's features and that mask."""

    class_layers: ClassVar[dict[str, int]] = {"fc_mask_iou": 1}

    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: Sequence[int] = (256, 256, 256, 256),
        fc_dims: Sequence[int] = (1024, 1024),
        conv_norm: str = "",
    ) -> None:
        """Build the layers.

        Args:
            input_shape: of a RoI's features: channels, height and width.
            num_classes: K; 1 for one IoU whatever the class.
            conv_dims: output channels of the 3x3 convolutions, of which the last has stride 2.
            fc_dims: widths of the hidden fully connected layers.
            conv_norm: norm of the convolutions, as `detectron2.layers.get_norm` takes it.

        Raises:
            ValueError: the size of the features is not given, or there is no convolution or class.
        """
        super().__init__()
        if input_shape.channels is None or input_shape.height is None or input_shape.width is None:
            raise ValueError(f"MaskIoUHead: input_shape needs channels, height and width, got {input_shape}.")
        if not conv_dims or num_classes < 1:
            raise ValueError(
                f"MaskIoUHead needs a convolution and a class at least, got conv_dims={list(conv_dims)} and "
                f"num_classes={num_classes}."
            )
        self.input_size = (input_shape.channels, input_shape.height, input_shape.width)
        self.num_classes = num_classes
        self.convs = nn.ModuleList()
        channels = input_shape.channels + 1
        for index, dim in enumerate(conv_dims, start=1):
            conv = Conv2d(
                channels,
                dim,
                kernel_size=3,
                stride=2 if index == len(conv_dims) else 1,
                padding=1,
                bias=not conv_norm,
                norm=get_norm(conv_norm, dim),
                activation=F.relu,
            )
            weight_init.c2_msra_fill(conv)
            self.convs.append(conv)
            channels = dim
        self.fcs = nn.ModuleList()
        width = channels * -(-input_shape.height // 2) * -(-input_shape.width // 2)
        for dim in fc_dims:
            fc = nn.Linear(width, dim)
            weight_init.c2_xavier_fill(fc)
            self.fcs.append(fc)
            width = dim
        self.fc_mask_iou = nn.Linear(width, num_classes)
        nn.init.normal_(self.fc_mask_iou.weight, std=0.01)
        nn.init.zeros_(self.fc_mask_iou.bias)

    def forward(self, x: Tensor, mask_probs: Tensor) -> Tensor:
        """Predict the IoUs of masks.

        Args:
            x: features [R, C, h, w].
            mask_probs: [R, 1, S, S] in [0, 1]; they are max-pooled to h x w.

        Returns:
            [R, K], not confined to [0, 1].

        Raises:
            ValueError: features of another size than the layers were built for.
        """
        if x.shape[1:] != self.input_size:
            raise ValueError(
                f"MaskIoUHead was built for features of [R, {', '.join(map(str, self.input_size))}], got "
                f"{list(x.shape)}: set its input_shape to the mask pooler's channels and output_size."
            )
        pooled = F.adaptive_max_pool2d(mask_probs, self.input_size[1:])  # [R, 1, h, w]
        x = torch.cat([x, pooled.to(x.dtype)], dim=1)  # [R, C + 1, h, w]
        for conv in self.convs:
            x = conv(x)
        x = x.flatten(1)
        for fc in self.fcs:
            x = F.relu(fc(x))
        return self.fc_mask_iou(x)


@ROI_MASK_HEAD_REGISTRY.register()
class MaskScoringHead(NotScriptable, nn.Module):
    """A mask head whose detections are scored by the predicted IoU of their masks as well as by their class."""

    @configurable
    def __init__(
        self,
        *,
        mask_head: nn.Module,
        mask_iou_head: MaskIoUHead,
        loss_weight: float = 1.0,
        min_iou: float = 0.0,
        rescore: bool = True,
    ) -> None:
        """Take the two heads.

        Args:
            mask_head: a `SplitMaskHead`, or a mask head of Detectron2 with its own `layers` and the usual loss.
            mask_iou_head: for the same features.
            loss_weight: of `loss_mask_iou`.
            min_iou: RoIs are learned from whose mask has a true IoU above it.
            rescore: multiply the scores of detections by the IoU; else it is only told.

        Raises:
            ValueError: the mask head is of neither kind.
        """
        super().__init__()
        is_stock = isinstance(mask_head, BaseMaskRCNNHead) and type(mask_head).forward is BaseMaskRCNNHead.forward
        if not isinstance(mask_head, SplitMaskHead) and not is_stock:
            raise ValueError(
                f"MaskScoringHead cannot score the masks of a {type(mask_head).__name__}: it has a forward of its own. "
                "Give it the methods mask_outputs(x) and mask_losses(outputs, instances)."
            )
        self.mask_head = mask_head
        self.mask_iou_head = mask_iou_head
        self.loss_weight = loss_weight
        self.min_iou = min_iou
        self.rescore = rescore

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read `cfg.MODEL.MASK_SCORING`, where MASK_HEAD names the mask head that is scored."""
        options = with_defaults(cfg).MODEL.MASK_SCORING
        if cls.__name__ == options.MASK_HEAD:
            raise ValueError(f"MODEL.MASK_SCORING.MASK_HEAD must name another mask head than {cls.__name__}.")
        agnostic = cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK
        mask_iou_head = MaskIoUHead(
            input_shape,
            num_classes=1 if agnostic else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            conv_dims=[options.CONV_DIM] * options.NUM_CONV,
            fc_dims=[options.FC_DIM] * options.NUM_FC,
            conv_norm=options.NORM,
        )
        return {
            "mask_head": ROI_MASK_HEAD_REGISTRY.get(options.MASK_HEAD)(cfg, input_shape),
            "mask_iou_head": mask_iou_head,
            "loss_weight": options.LOSS_WEIGHT,
            "min_iou": options.MIN_IOU,
            "rescore": options.RESCORE,
        }

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """Train on RoIs, or add masks to detections and score them.

        Args:
            x: features [R, C, h, w], of which the first R_0 belong to the first image, and so on.
            instances: N Instances of R_i: in training positive RoIs with `proposal_boxes`, `gt_classes` and `gt_masks`;
                else detections with `pred_classes`, and `scores` where they are to be changed.

        Returns:
            In training the losses: those of the mask head and `loss_mask_iou`. Else the instances in their order with
            `pred_masks` [R_i, 1, S, S] as every mask head gives them and `mask_ious` [R_i] in [0, 1]; `scores` are
            multiplied by these, and the scores before are `box_scores`, which a second call starts from.
        """
        if self.training:
            outputs = self._outputs(x)
            losses = self._losses(outputs, instances)
            losses["loss_mask_iou"] = self.loss_weight * self._iou_loss(x, outputs["pred_mask_logits"], instances)
            return losses
        mask_rcnn_inference(self._outputs(x)["pred_mask_logits"], instances)
        if instances:
            self._score(x, instances)
        return instances

    def _outputs(self, x: Tensor) -> dict[str, Tensor]:
        if isinstance(self.mask_head, SplitMaskHead):
            return self.mask_head.mask_outputs(x)
        return {"pred_mask_logits": self.mask_head.layers(x)}

    def _losses(self, outputs: dict[str, Tensor], instances: list[Instances]) -> dict[str, Tensor]:
        if isinstance(self.mask_head, SplitMaskHead):
            return dict(self.mask_head.mask_losses(outputs, instances))
        loss = mask_rcnn_loss(outputs["pred_mask_logits"], instances, self.mask_head.vis_period)
        return {"loss_mask": loss * self.mask_head.loss_weight}

    def _iou_loss(self, x: Tensor, logits: Tensor, instances: list[Instances]) -> Tensor:
        found = [each for each in instances if len(each)]  # other images may lack the fields
        logits = _select(logits, found, "gt_classes")  # [R, S, S]
        ious = _select(self.mask_iou_head(x, logits[:, None].sigmoid()), found, "gt_classes")  # [R]
        targets = mask_targets(found, logits.shape[1]).to(logits.device)
        areas = [areas_in_boxes(each.gt_masks, each.proposal_boxes.tensor) for each in found]
        areas = torch.cat(areas, dim=1).to(logits.device) if found else targets.new_zeros(2, 0)
        return mask_iou_loss(ious, mask_iou_targets(logits >= 0, targets >= 0.5, *areas), self.min_iou)

    def _score(self, x: Tensor, instances: list[Instances]) -> None:
        masks = torch.cat([each.pred_masks for each in instances])  # [R, 1, S, S]
        ious = _select(self.mask_iou_head(x, masks), instances, "pred_classes").clamp(0, 1)  # [R]
        for each, mask_ious in zip(instances, ious.split([len(each) for each in instances]), strict=True):
            each.mask_ious = mask_ious.float()
            if self.rescore and each.has("scores"):  # boxes that a caller gives need none
                if not each.has("box_scores"):
                    each.box_scores = each.scores
                each.scores = each.box_scores * each.mask_ious.to(each.box_scores.dtype)


def mask_iou_loss(pred_ious: Tensor, target_ious: Tensor, min_iou: float = 0.0) -> Tensor:
    """Half the mean square error of IoUs [R] over the masks whose true IoU is above a limit.

    Where there is no such mask it is 0 with a gradient of 0.
    """
    learned = target_ious > min_iou
    errors = (pred_ious.to(torch.promote_types(pred_ious.dtype, target_ious.dtype)) - target_ious).square() * learned
    return 0.5 * errors.sum() / learned.sum().clamp(min=1)


def _select(values: Tensor, instances: Sequence[Instances], field: str) -> Tensor:
    """Of values [R, K, ...] those of each RoI's class, [R, ...]."""
    return select_class(values, get_class_rows(instances, field, values.shape[1], values.device))
