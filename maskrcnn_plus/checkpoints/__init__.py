"""Weights in and out: reading files without running code from them, loading a model, writing checkpoints."""

from maskrcnn_plus.checkpoints.checkpointer import Checkpointer
from maskrcnn_plus.checkpoints.load import WeightsError, load_weights

__all__ = ["Checkpointer", "WeightsError", "load_weights"]
