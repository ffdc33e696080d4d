"""Evaluation: how good predicted masks are, by the metrics of COCO and of the nuclei papers."""

from .coco import COCOMaskEvaluator
from .matching import MatchingEvaluator
from .proposals import ProposalRecallEvaluator

__all__ = ["COCOMaskEvaluator", "MatchingEvaluator", "ProposalRecallEvaluator"]
