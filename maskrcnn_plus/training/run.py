"""From a config to a finished training: everything is built, resumed, trained and evaluated here."""

from __future__ import annotations

import argparse
import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import default_setup, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig, OmegaConf
from torch import nn

from maskrcnn_plus.atomic import TEMPORARY, write_atomically
from maskrcnn_plus.build import build
from maskrcnn_plus.checkpoints import Checkpointer, load_weights, read_classes
from maskrcnn_plus.checkpoints.config_record import flatten_config
from maskrcnn_plus.checkpoints.description import describe
from maskrcnn_plus.config import skip_pretrained
from maskrcnn_plus.config_rules import check_config
from maskrcnn_plus.data.classes import Classes, resolve_classes
from maskrcnn_plus.device import usable_device, use_channels_last
from maskrcnn_plus.errors import UserError, first_line
from maskrcnn_plus.input_channels import follow_dataset_channels
from maskrcnn_plus.learning_rate import log_learning_rate
from maskrcnn_plus.locking import lock_folder
from maskrcnn_plus.logs import log_to_file
from maskrcnn_plus.training.data import RunData
from maskrcnn_plus.training.evaluation import evaluate
from maskrcnn_plus.training.hooks import BestWeights, Evaluation, NothingBetter, PeriodicCheckpoint, WeightAveraging
from maskrcnn_plus.training.loggers import check_loggers
from maskrcnn_plus.training.loop import Trainer, unwrap
from maskrcnn_plus.training.processes import create_distributed, on_main_process
from maskrcnn_plus.training.signals import StopOnSignal, StopSignals, TrainingInterrupted
from maskrcnn_plus.training.time_limit import TimeLimit
from maskrcnn_plus.training.writers import MetricsWriter, build_writers

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace, cfg: DictConfig) -> dict[str, Any]:
    """Train (or, with `args.eval_only`, evaluate) as the config says. The data is read and checked first.

    A training has its output folder for itself. An evaluation writes its log and config to the folder `eval` in it,
    so that neither disturbs the other.

    Args:
        args: of `detectron2.engine.default_argument_parser` (`resume`, `eval_only`, `config_file`).
        cfg: with `model`, `dataloader`, `optimizer`, `lr_multiplier` and `train` (see `configs/common/train.py`).

    Returns:
        The results of the last evaluation.

    Raises:
        BlockingIOError: another training has the output folder.
        ChildProcessError: a data loading process was killed.
        SystemExit: a signal ended it; 128 + its number.
    """
    check_config(cfg)
    check_loggers([] if args.eval_only else cfg.train.get("logger") or [])
    cfg.train.device = str(usable_device(cfg.train.device))
    if args.eval_only and not cfg.train.init_checkpoint:
        raise UserError("--eval-only needs weights: train.init_checkpoint=FILE.")
    folder = cfg.train.output_dir
    try:
        if args.eval_only:
            set_up(args, cfg, os.path.join(folder, "eval"))
            return evaluate_checkpoint(cfg)
        remedy = "wait for its end, or set another train.output_dir"
        with on_main_process(lambda: lock_folder(folder, os.path.join(folder, ".lock"), remedy)) or nullcontext():
            set_up(args, cfg, folder)
            classes = resolve_classes(cfg)
            data = RunData(cfg, training=True)
            return train(cfg, build_model(cfg), data, resume=args.resume, classes=classes)
    except TrainingInterrupted as interruption:
        what = "the evaluation has no results" if args.eval_only else "--resume continues from the last checkpoint"
        logger.info(f"Stopped by signal {interruption.signum}; {what}.")
        raise SystemExit(128 + interruption.signum) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            f"A data loading process ended unexpectedly ({first_line(error)}), most often for lack of "
            "memory: try a smaller num_workers in dataloader.train and dataloader.test. --resume continues from the "
            "last checkpoint."
        ) from error


def set_up(args: argparse.Namespace, cfg: DictConfig, folder: str) -> None:
    """Seeds, and log and config in `folder`, by Detectron2's `default_setup`; channels by `dataset`."""
    changed = cfg.copy()
    changed.train.output_dir = folder
    dataset = changed.get("dataset")
    unnamed = OmegaConf.is_dict(dataset) and dataset.get("thing_classes", "") is None
    if unnamed and OmegaConf.is_interpolation(dataset, "num_classes"):
        dataset.num_classes = None  # follows from the data; Detectron2 reads all values as it saves the config
    default_setup(changed, args)
    setup_logger(folder, distributed_rank=comm.get_rank(), name="maskrcnn_plus")
    follow_dataset_channels(cfg)


def evaluate_checkpoint(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate `train.init_checkpoint`."""
    skip_pretrained(cfg)
    checkpoint = cfg.train.init_checkpoint
    classes = resolve_classes(cfg, read_classes(checkpoint), ["test"])
    data = RunData(cfg, training=False)
    model = build_model(cfg)
    logger.info(load_weights(model, checkpoint, class_names=classes and classes.names, strict=True))
    with StopSignals() as signals:
        return evaluate(cfg, model, signals, data)


def build_model(cfg: DictConfig) -> nn.Module:
    """The model of the config on its device, in its memory format."""
    model = build(cfg, "model").to(cfg.train.device)
    if cfg.train.channels_last:
        use_channels_last(model)
    log = log_to_file(f"Model:\n{model}")
    logger.info(
        f"{type(model).__name__} of {sum(p.numel() for p in model.parameters()):,} parameters"
        + (f", layer by layer in {log}" if log else "")
    )
    mean, std = (getattr(model, name, None) for name in ("pixel_mean", "pixel_std"))
    if mean is not None and std is not None:
        logger.info(f"Pixels: mean {_numbers(mean)}, deviation {_numbers(std)}, {getattr(model, 'input_format', '')}")
    return model


def _numbers(values: torch.Tensor) -> list[float]:
    return [round(value, 3) for value in values.flatten().tolist()]


def train(
    cfg: DictConfig, model: nn.Module, data: RunData, resume: bool, classes: Classes | None = None
) -> dict[str, Any]:
    """Train with checkpoints, evaluation and logs in `cfg.train.output_dir`; see `run`."""
    settings = cfg.train
    log_learning_rate(cfg)
    cfg.optimizer.params.model = model
    optimizer = build(cfg, "optimizer")
    cfg.optimizer.params.model = None
    averaging = WeightAveraging(model, settings.ema.decay) if settings.ema.enabled else None
    distributed = create_distributed(cfg, model)
    trainer = Trainer(
        distributed,
        None,
        optimizer,
        amp_dtype=settings.amp.dtype if settings.amp.enabled else None,
        accumulate=settings.accumulate,
        clip_grad_norm=settings.clip_grad_norm,
        seed=settings.seed,
    )
    states = {"trainer": trainer, **({"ema": averaging.average} if averaging else {})}
    about = {"class_names": classes.names, "category_ids": classes.category_ids} if classes else {}
    about["description"] = describe(cfg, **about, data=data.describe())
    checkpointer = Checkpointer(distributed, settings.output_dir, config=flatten_config(cfg), **about, **states)
    # Before the checkpoint is loaded, which has its state too.
    schedule = hooks.LRScheduler(optimizer, build(cfg, "lr_multiplier"))
    hours = settings.get("max_hours") or 0
    limit = TimeLimit(3600 * hours, settings.max_iter, schedule) if hours else None
    trainer.register_hooks([hooks.IterationTimer(), limit, schedule])
    start_iter = _resume_or_load(checkpointer, trainer, settings, resume)
    max_iter = limit.max_iter(start_iter) if limit else settings.max_iter
    evaluated = model if averaging is None else averaging.average.module
    chosen = settings.best
    best = on_main_process(lambda: BestWeights(checkpointer, chosen.metric, chosen.mode, start_iter))
    patience = (settings.get("patience") or 0) * settings.eval_period

    def is_exhausted(iteration: int) -> bool:
        return comm.all_gather(best is not None and best.is_exhausted(iteration, patience))[0]

    with StopSignals() as signals:
        if start_iter >= max_iter or (start_iter and is_exhausted(start_iter - 1)):
            why = _patience(settings)
            if start_iter >= max_iter:
                why = f"train.max_iter={max_iter}" if max_iter == settings.max_iter else f"train.max_hours={hours}"
            logger.info(f"The run in {settings.output_dir} is finished ({why}).")
            return evaluate(cfg, evaluated, signals, data)
        trainer.data_loader = data.train_loader(start_iter)
        results: dict[str, Any] = {}
        periodic = PeriodicCheckpoint(checkpointer, **settings.checkpointer)

        def test() -> dict[str, Any]:
            periodic.save()
            results.clear()
            results.update(evaluate(cfg, evaluated, signals, data))
            if results:
                checkpointer.metrics = {"iteration": trainer.iter, **flatten_results_dict(results)}
            if results and chosen.metric:
                best.update(flatten_results_dict(results), trainer.iter, evaluated)
            return results

        config = checkpointer.config
        writers = on_main_process(lambda: build_writers(settings, start_iter, config))
        trainer.register_hooks(
            [
                averaging,
                periodic,
                Evaluation(settings.eval_period, test, is_exhausted),
                MetricsWriter(writers, settings.log_period, settings.output_dir) if writers else None,
                StopOnSignal(signals, periodic.save),
            ]
        )
        try:
            trainer.train(start_iter, max_iter)
        except NothingBetter:
            logger.info(f"The training ends at iteration {trainer.iter}: {_patience(settings)}.")
            checkpointer.save("model_final")
    return results


def _patience(settings: DictConfig) -> str:
    """Why `train.patience` ended a training."""
    return f"no better {settings.best.metric} in {settings.patience} evaluations; train.patience=0 goes on to the end"


def _resume_or_load(checkpointer: Checkpointer, trainer: Trainer, settings: DictConfig, resume: bool) -> int:
    """Load the last checkpoint or the initial weights; returns the first iteration to run."""
    on_main_process(lambda: _remove_leftovers(settings.output_dir))
    resumed = resume and checkpointer.load_last()
    start_iter = trainer.iter + 1 if resumed else 0
    if len(set(comm.all_gather(start_iter))) > 1:
        raise ValueError(
            f"Not all processes find the last checkpoint in {settings.output_dir}: it must be the same folder on all "
            "machines."
        )
    if resumed:
        return start_iter
    if resume:
        logger.warning(f"--resume: {settings.output_dir} holds no checkpoint; the training starts at iteration 0.")
    elif checkpointer.has_checkpoint():
        logger.warning(
            f"{settings.output_dir} holds checkpoints of an earlier run, which this one overwrites. "
            "To continue that run stop now and use --resume; to keep it set another train.output_dir."
        )
    if settings.init_checkpoint:
        report = load_weights(
            unwrap(checkpointer.model),
            settings.init_checkpoint,
            class_names=checkpointer.class_names,
            allow_partial=settings.init_allow_partial,
        )
        logger.info(report)
        path = os.path.join(settings.output_dir, "init_report.txt")
        on_main_process(lambda: write_atomically(path, report.table().encode()))
        logger.info(f"Every tensor of it: {path}")
    return 0


def _remove_leftovers(folder: str) -> None:
    """Remove what a run that was killed while it wrote has left."""
    for leftover in Path(folder).glob(TEMPORARY):
        leftover.unlink(missing_ok=True)
