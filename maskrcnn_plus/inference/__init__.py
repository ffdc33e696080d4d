"""Prediction on images: the predictor, tiles of large images, and what becomes of the results in files and pictures."""

from maskrcnn_plus.inference.optimize import optimize_for_inference
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.inference.tiling import predict_tiled

__all__ = ["Predictor", "optimize_for_inference", "predict_tiled"]
