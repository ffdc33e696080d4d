"""RoI features: pyramid and boxes in, fixed-size features out."""

from maskrcnn_plus.ops.roi_align import roi_align, roi_align_pyramid
from maskrcnn_plus.roi.box_predictor import FastRCNNOutput
from maskrcnn_plus.roi.dense_heads import DenseCascadeROIHeads, DenseROIHeads
from maskrcnn_plus.roi.generic import GenericRoIExtractor
from maskrcnn_plus.roi.pooler import PyramidROIAlign
from maskrcnn_plus.roi.soft_nms import soft_nms

__all__ = [
    "DenseCascadeROIHeads",
    "DenseROIHeads",
    "FastRCNNOutput",
    "GenericRoIExtractor",
    "PyramidROIAlign",
    "roi_align",
    "roi_align_pyramid",
    "soft_nms",
]
