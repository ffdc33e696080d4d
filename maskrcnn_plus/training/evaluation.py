"""Evaluation of a model by the test loader and the evaluators of a config."""

from __future__ import annotations

import contextlib
import functools
import logging
from typing import Any

from detectron2.evaluation import inference_context, inference_on_dataset, print_csv_format
from omegaconf import DictConfig, OmegaConf
from torch import nn

from maskrcnn_plus.build import build
from maskrcnn_plus.evaluation.proposals import predict_proposals
from maskrcnn_plus.mask_rcnn import without_dense_masks
from maskrcnn_plus.training.data import RunData
from maskrcnn_plus.training.processes import share_buffers
from maskrcnn_plus.training.signals import StoppableEvaluators, StoppableLoader, StopSignals

logger = logging.getLogger(__name__)


def evaluate(
    cfg: DictConfig, model: nn.Module, signals: StopSignals | None = None, data: RunData | None = None
) -> dict[str, Any]:
    """Run the config's test loader through the model and its evaluators, and through its proposal generator if wanted.

    Args:
        cfg: with `dataloader.test` and `dataloader.evaluator`.
        model: not in DistributedDataParallel, whose collectives do not fit processes with different numbers of images.
        signals: what may end the evaluation; the caller has taken them.
        data: of the run; None reads it.

    Returns:
        Nested results, {"segm": {"AP": ...}, ...}, with `train.validation_loss` also {"val_loss": ..., ...}; empty on
        all but the main process.

    Raises:
        TrainingInterrupted: in all processes, where one got a signal.
    """
    share_buffers(model)
    signals = signals or StopSignals()
    data = data or RunData(cfg, training=False)
    loader = StoppableLoader(data.test_loader, signals)
    evaluators = data.evaluators()
    runs_suffice = all(getattr(evaluator, "reads_runs", False) for evaluator in evaluators)
    with without_dense_masks(model) if runs_suffice else contextlib.nullcontext():
        results = inference_on_dataset(model, loader, StoppableEvaluators(evaluators, signals)) or {}
    if OmegaConf.select(cfg, "train.eval_proposals"):
        evaluator = StoppableEvaluators([build(cfg, "dataloader.proposal_evaluator")], signals)
        with inference_context(model):
            results.update(inference_on_dataset(functools.partial(predict_proposals, model), loader, evaluator) or {})
    if results:
        print_csv_format(results)
    if data.validation_loss is not None:
        losses = data.validation_loss(model)
        if losses:
            logger.info(f"Validation loss {losses['val_loss']:.4g}")
        results.update(losses)
    return results
