"""Mask heads: RoI features -> mask logits and their quality."""

from maskrcnn_plus.mask_heads.boundary import BoundaryMaskHead
from maskrcnn_plus.mask_heads.conv_upsample import ConvUpsampleMaskHead
from maskrcnn_plus.mask_heads.mask_iou import MaskIoUHead, MaskScoringHead, mask_iou_loss
from maskrcnn_plus.mask_heads.point_rend import PointRendHead
from maskrcnn_plus.mask_heads.targets import areas_in_boxes, boundary_targets, mask_iou_targets, mask_targets

__all__ = [
    "BoundaryMaskHead",
    "ConvUpsampleMaskHead",
    "MaskIoUHead",
    "MaskScoringHead",
    "PointRendHead",
    "areas_in_boxes",
    "boundary_targets",
    "mask_iou_loss",
    "mask_iou_targets",
    "mask_targets",
]
