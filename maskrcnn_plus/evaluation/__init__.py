"""Evaluation: how good predicted masks are, by the metrics of COCO and of the nuclei papers."""

from .coco import COCOMaskEvaluator
from .matching import MatchingEvaluator

__all__ = ["COCOMaskEvaluator", "MatchingEvaluator"]
