"""Weights in and out: reading files without running code from them, loading a model, writing checkpoints."""

from maskrcnn_plus.checkpoints.checkpointer import Checkpointer
from maskrcnn_plus.checkpoints.load import load_weights, read_classes
from maskrcnn_plus.checkpoints.report import LoadReport
from maskrcnn_plus.weights.conversion import WeightsError

__all__ = ["Checkpointer", "LoadReport", "WeightsError", "load_weights", "read_classes"]
