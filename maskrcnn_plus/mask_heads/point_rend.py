"""Detectron2's PointRend mask head (Kirillov et al., 2020) with keyword arguments, for every type of masks.

Detectron2's own takes a yacs config alone, learns from `BitMasks` alone, and fails on a batch without foreground.

Shorthand: R RoIs of all images, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.projects.point_rend import PointRendMaskHead, add_pointrend_config
from detectron2.structures import Instances
from torch import Tensor

from maskrcnn_plus.config import with_defaults
from maskrcnn_plus.masks.adapters import adapt_masks
from maskrcnn_plus.scripting import NotScriptable


@ROI_MASK_HEAD_REGISTRY.register()
class PointRendHead(NotScriptable, PointRendMaskHead):
    """Coarse masks from a small map of each RoI, refined at uncertain points by features of the finest level.

    It reads the levels itself: `roi_heads.mask_pooler` must be None (yacs: MODEL.ROI_MASK_HEAD.POOLER_TYPE ""). In
    training the whole-image mask of each foreground RoI is made, as in Detectron2.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        in_features: Sequence[str] = ("p2",),
        pooler_resolution: int = 14,
        conv_dim: int = 256,
        fc_dim: int = 1024,
        num_fc: int = 2,
        coarse_resolution: int = 7,
        point_fc_dim: int = 256,
        num_point_fc: int = 3,
        train_points: int = 196,
        oversample_ratio: int = 3,
        importance_ratio: float = 0.75,
        subdivision_steps: int = 5,
        subdivision_points: int = 784,
    ) -> None:
        """Build the two heads.

        Args:
            input_shape: channels and stride of each level.
            num_classes: of the masks.
            in_features: levels that coarse masks and points take their features from.
            pooler_resolution: side of the features of the coarse head.
            conv_dim: channels of the coarse head's convolutions, at most those that come in.
            fc_dim, num_fc: width and number of its linear layers.
            coarse_resolution: side of a coarse mask.
            point_fc_dim, num_point_fc: width and number of layers of the point head.
            train_points: points of a RoI in training.
            oversample_ratio: candidates for each of them.
            importance_ratio: part of them that are the most uncertain candidates.
            subdivision_steps: each doubles the side of the masks, from `coarse_resolution`.
            subdivision_points: points that are computed anew in a step.

        Raises:
            ValueError: a level does not exist or `conv_dim` is too large.
        """
        if missing := [name for name in in_features if name not in input_shape]:
            raise ValueError(
                f"PointRendHead: in_features {missing} are not in input_shape, which has {[*input_shape]}."
            )
        channels = sum(input_shape[name].channels for name in in_features)
        if conv_dim > channels:
            raise ValueError(f"PointRendHead: conv_dim must be at most the {channels} channels in, got {conv_dim}.")
        coarse = {
            "IN_FEATURES": list(in_features),
            "POOLER_RESOLUTION": pooler_resolution,
            "CONV_DIM": conv_dim,
            "FC_DIM": fc_dim,
            "NUM_FC": num_fc,
            "OUTPUT_SIDE_RESOLUTION": coarse_resolution,
            "POINT_HEAD_ON": True,
        }
        points = {
            "NAME": "StandardPointHead",
            "NUM_CLASSES": num_classes,
            "IN_FEATURES": list(in_features),
            "FC_DIM": point_fc_dim,
            "NUM_FC": num_point_fc,
            "CLS_AGNOSTIC_MASK": False,
            "COARSE_PRED_EACH_LAYER": True,
            "TRAIN_NUM_POINTS": train_points,
            "OVERSAMPLE_RATIO": oversample_ratio,
            "IMPORTANCE_SAMPLE_RATIO": importance_ratio,
            "SUBDIVISION_STEPS": subdivision_steps,
            "SUBDIVISION_NUM_POINTS": subdivision_points,
        }
        heads = {"NUM_CLASSES": num_classes}
        cfg = CfgNode({"MODEL": {"ROI_HEADS": heads, "ROI_MASK_HEAD": coarse, "POINT_HEAD": points}})
        super().__init__(cfg, input_shape)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec] | ShapeSpec) -> dict[str, Any]:
        """Arguments from the keys of `detectron2.projects.point_rend.add_pointrend_config`."""
        if isinstance(input_shape, ShapeSpec):  # of a pooler's maps
            raise ValueError('PointRendHead reads the levels itself: set MODEL.ROI_MASK_HEAD.POOLER_TYPE to "".')
        cfg = with_defaults(cfg, add_pointrend_config)
        coarse, points = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.POINT_HEAD
        return {
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "in_features": coarse.IN_FEATURES,
            "pooler_resolution": coarse.POOLER_RESOLUTION,
            "conv_dim": coarse.CONV_DIM,
            "fc_dim": coarse.FC_DIM,
            "num_fc": coarse.NUM_FC,
            "coarse_resolution": coarse.OUTPUT_SIDE_RESOLUTION,
            "point_fc_dim": points.FC_DIM,
            "num_point_fc": points.NUM_FC,
            "train_points": points.TRAIN_NUM_POINTS,
            "oversample_ratio": points.OVERSAMPLE_RATIO,
            "importance_ratio": points.IMPORTANCE_SAMPLE_RATIO,
            "subdivision_steps": points.SUBDIVISION_STEPS,
            "subdivision_points": points.SUBDIVISION_NUM_POINTS,
        }

    def forward(self, features: dict[str, Tensor], instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """Losses in training, masks in inference.

        Args:
            features: level -> [N, C, H, W].
            instances: N Instances. In training with `proposal_boxes`, `gt_classes` and `gt_masks`; in inference with
                `pred_boxes` and `pred_classes`.

        Returns:
            In training `loss_mask` and `loss_mask_point`, zeros that reach every parameter where R = 0; in inference
            the instances with `pred_masks`, probabilities [R_i, 1, M, M].
        """
        if not self.training:
            return super().forward(features, instances)
        if sum(len(each) for each in instances) == 0:
            zero = 0 * sum(parameter.sum() for parameter in self.parameters())
            return {"loss_mask": zero, "loss_mask_point": zero}
        return super().forward(features, [_with_bitmasks(each) for each in instances])


def _with_bitmasks(instances: Instances) -> Instances:
    """The same with `BitMasks`."""
    if len(instances) == 0:
        return instances
    fields = dict(instances.get_fields())
    masks = adapt_masks(fields["gt_masks"], instances.image_size).to_bitmasks()
    return Instances(instances.image_size, **{**fields, "gt_masks": masks.to(instances.gt_classes.device)})
