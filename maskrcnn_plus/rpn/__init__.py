"""Region proposals: feature pyramid in, boxes out."""

from maskrcnn_plus.ops.nms import batched_nms
from maskrcnn_plus.rpn.adaptive_conv import AdaptiveConv2d
from maskrcnn_plus.rpn.anchors import TorchvisionAnchorGenerator
from maskrcnn_plus.rpn.batched import BatchedRPN
from maskrcnn_plus.rpn.cascade import CascadeRPN, CascadeRPNHead, square_anchors
from maskrcnn_plus.rpn.iou_aware import IoUAwareRPN, IoUAwareRPNHead

__all__ = [
    "AdaptiveConv2d",
    "BatchedRPN",
    "CascadeRPN",
    "CascadeRPNHead",
    "IoUAwareRPN",
    "IoUAwareRPNHead",
    "TorchvisionAnchorGenerator",
    "batched_nms",
    "square_anchors",
]
