"""Mask R-CNN components for Detectron2; importing the package registers them, and changes nothing of the process."""

from maskrcnn_plus import backbones, data, mask_heads, mask_rcnn, necks, roi, rpn

__version__ = "0.1.0"

__all__ = ["backbones", "data", "mask_heads", "mask_rcnn", "necks", "roi", "rpn"]
