"""Region proposals: feature pyramid in, boxes out."""

from maskrcnn_plus.rpn.anchors import TorchvisionAnchorGenerator
from maskrcnn_plus.rpn.batched import BatchedRPN
from maskrcnn_plus.rpn.nms import batched_nms

__all__ = ["BatchedRPN", "TorchvisionAnchorGenerator", "batched_nms"]
