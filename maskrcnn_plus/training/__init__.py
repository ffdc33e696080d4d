"""Training and evaluation driven by a LazyConfig."""

from maskrcnn_plus.training.launch import launch
from maskrcnn_plus.training.loop import Trainer
from maskrcnn_plus.training.run import evaluate, run

__all__ = ["Trainer", "evaluate", "launch", "run"]
