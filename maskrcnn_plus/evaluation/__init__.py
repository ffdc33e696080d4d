"""Evaluation: how good predicted masks are, by the metrics of COCO and of the nuclei papers."""

from maskrcnn_plus.evaluation.coco import COCOMaskEvaluator
from maskrcnn_plus.evaluation.matching import MatchingEvaluator
from maskrcnn_plus.evaluation.proposals import ProposalRecallEvaluator

__all__ = ["COCOMaskEvaluator", "MatchingEvaluator", "ProposalRecallEvaluator"]
