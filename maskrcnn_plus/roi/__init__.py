"""RoI features: pyramid and boxes in, fixed-size features out."""

from maskrcnn_plus.roi.box_predictor import FastRCNNOutput
from maskrcnn_plus.roi.pooler import PyramidROIAlign
from maskrcnn_plus.roi.roi_align import roi_align, roi_align_pyramid

__all__ = ["FastRCNNOutput", "PyramidROIAlign", "roi_align", "roi_align_pyramid"]
