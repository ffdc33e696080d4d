"""Mask R-CNN components for Detectron2; importing the package registers them."""

__version__ = "0.1.0"

from maskrcnn_plus import backbones, data, mask_heads, mask_rcnn, necks, roi, rpn

__all__ = ["backbones", "data", "mask_heads", "mask_rcnn", "necks", "roi", "rpn"]
