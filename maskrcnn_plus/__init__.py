"""Mask R-CNN components for Detectron2; importing the package registers them."""

from maskrcnn_plus.threads import wait_briefly

wait_briefly()  # OpenMP reads it when PyTorch is loaded, by the imports below at the latest

from maskrcnn_plus import backbones, data, mask_heads, mask_rcnn, necks, roi, rpn  # noqa: E402

__version__ = "0.1.0"

__all__ = ["backbones", "data", "mask_heads", "mask_rcnn", "necks", "roi", "rpn"]
