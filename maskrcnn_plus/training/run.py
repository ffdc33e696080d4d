"""From a config to a finished training: everything is built, resumed, trained and evaluated here."""

from __future__ import annotations

import argparse
import functools
import glob
import json
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import DatasetEvaluators, inference_context, inference_on_dataset, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig, OmegaConf
from torch import nn

from maskrcnn_plus.allocator import keep_freed_memory
from maskrcnn_plus.atomic import TEMPORARY, write_atomically
from maskrcnn_plus.checkpoints import Checkpointer, load_weights
from maskrcnn_plus.config import skip_pretrained
from maskrcnn_plus.device import usable_device
from maskrcnn_plus.inference.proposals import proposals_of
from maskrcnn_plus.training.hooks import (
    BestWeights,
    PeriodicCheckpoint,
    StopOnSignal,
    TrainingInterrupted,
    WeightAveraging,
)
from maskrcnn_plus.training.loop import Trainer

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace, cfg: DictConfig) -> dict[str, Any]:
    """Train (or, with `args.eval_only`, evaluate) as the config says.

    Args:
        args: of `detectron2.engine.default_argument_parser` (`resume`, `eval_only`, `config_file`).
        cfg: with `model`, `dataloader`, `optimizer`, `lr_multiplier` and `train` (see `configs/common/train.py`).

    Returns:
        The results of the last evaluation.
    """
    cfg.train.device = str(usable_device(cfg.train.device))
    default_setup(cfg, args)
    if cfg.train.device == "cpu":
        keep_freed_memory()
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="maskrcnn_plus")
    if args.eval_only:
        skip_pretrained(cfg)
    model = build_model(cfg)
    if args.eval_only:
        names = OmegaConf.select(cfg, "dataset.thing_classes")
        logger.info(load_weights(model, _required_checkpoint(cfg), class_names=names, strict=True))
        return evaluate(cfg, create_distributed(cfg, model))
    return train(cfg, model, resume=args.resume)


def build_model(cfg: DictConfig) -> nn.Module:
    """The model of the config on its device, in its memory format."""
    model = instantiate(cfg.model).to(cfg.train.device)
    if cfg.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    logger.info(f"Model:\n{model}")
    logger.info(f"Parameters: {sum(p.numel() for p in model.parameters()):,}")
    return model


def create_distributed(cfg: DictConfig, model: nn.Module) -> nn.Module:
    """Detectron2's DistributedDataParallel where there is more than one process."""
    device = {"device_ids": None} if cfg.train.device == "cpu" else {}
    return create_ddp_model(model, **device, **cfg.train.ddp)


def _required_checkpoint(cfg: DictConfig) -> str:
    if not cfg.train.init_checkpoint:
        raise ValueError("--eval-only needs weights: train.init_checkpoint=FILE.")
    return cfg.train.init_checkpoint


class _Interruptible:
    """A data loader that calls `check` before each batch."""

    def __init__(self, loader, check: Callable[[], None]) -> None:
        self.loader = loader
        self.check = check

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self.loader:
            self.check()
            yield batch


def evaluate(cfg: DictConfig, model: nn.Module, check: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Run the config's test loader through the model and its evaluators, and through its proposal generator if wanted.

    Returns:
        Nested results, {"segm": {"AP": ...}, ...}; empty on all but the main process.
    """
    loader = _Interruptible(instantiate(cfg.dataloader.test), check)
    evaluators = instantiate(cfg.dataloader.evaluator)
    if not hasattr(evaluators, "process"):  # a list of them
        evaluators = DatasetEvaluators(list(evaluators))
    results = inference_on_dataset(model, loader, evaluators) or {}
    if OmegaConf.select(cfg, "train.eval_proposals"):
        with inference_context(model):
            generator = functools.partial(proposals_of, model)
            results.update(
                inference_on_dataset(generator, loader, instantiate(cfg.dataloader.proposal_evaluator)) or {}
            )
    if results:
        print_csv_format(results)
    return results


def train(cfg: DictConfig, model: nn.Module, resume: bool) -> dict[str, Any]:
    """Train with checkpoints, evaluation and logs in `cfg.train.output_dir`; see `run`."""
    settings = cfg.train
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
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
    checkpointer = Checkpointer(distributed, settings.output_dir, class_names=find_class_names(cfg), **states)
    start_iter = _resume_or_load(checkpointer, trainer, settings, resume)
    evaluated = distributed if averaging is None else averaging.average.module
    if start_iter >= settings.max_iter:
        logger.info(f"The run in {settings.output_dir} is finished (train.max_iter={settings.max_iter}).")
        return evaluate(cfg, evaluated)
    trainer.data_loader = build_train_loader(cfg, start_iter)
    results: dict[str, Any] = {}
    periodic = PeriodicCheckpoint(checkpointer, **settings.checkpointer)
    stop = StopOnSignal(periodic.save)

    best = BestWeights(checkpointer, settings.best.metric, settings.best.mode, start_iter)

    def test() -> dict[str, Any]:
        results.clear()
        results.update(evaluate(cfg, evaluated, stop.check))
        if results and best.metric:
            best.update(flatten_results_dict(results), trainer.iter, _unwrap(evaluated))
        return results

    main_process = comm.is_main_process()
    writers = build_writers(settings.output_dir, settings.max_iter, start_iter) if main_process else []
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(optimizer, instantiate(cfg.lr_multiplier)),
            averaging,
            periodic,
            hooks.EvalHook(settings.eval_period, test),
            hooks.PeriodicWriter(writers, period=settings.log_period) if main_process else None,
            stop,
        ]
    )
    try:
        trainer.train(start_iter, settings.max_iter)
    except TrainingInterrupted as interruption:
        logger.info(f"Stopped by signal {interruption.signum} at iteration {trainer.iter}; --resume continues there.")
        raise SystemExit(128 + interruption.signum) from None
    return results


def _unwrap(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _resume_or_load(checkpointer: Checkpointer, trainer: Trainer, settings: DictConfig, resume: bool) -> int:
    """Load the last checkpoint or the initial weights; returns the first iteration to run."""
    for leftover in glob.glob(os.path.join(settings.output_dir, TEMPORARY)) if comm.is_main_process() else []:
        os.remove(leftover)  # of a run that was killed while it wrote
    found = checkpointer.has_checkpoint()
    if resume and found:
        checkpointer.load(checkpointer.get_checkpoint_file())
        return trainer.iter + 1
    if resume:
        logger.warning(f"--resume: {settings.output_dir} holds no checkpoint; the training starts at iteration 0.")
    elif found:
        logger.warning(
            f"{settings.output_dir} holds checkpoints of an earlier run, which this one overwrites. "
            "To continue that run stop now and use --resume; to keep it set another train.output_dir."
        )
    if settings.init_checkpoint:
        report = load_weights(
            _unwrap(checkpointer.model),
            settings.init_checkpoint,
            class_names=checkpointer.class_names,
            allow_partial=settings.init_allow_partial,
        )
        logger.info(report)
        if comm.is_main_process():
            path = os.path.join(settings.output_dir, "init_report.txt")
            write_atomically(path, report.table().encode())
            logger.info(f"Every tensor of it: {path}")
    return 0


def find_class_names(cfg: DictConfig) -> list[str] | None:
    """Names of the model's classes: `dataset.thing_classes`, else those of the first training data set; or None."""
    names = OmegaConf.select(cfg, "dataset.thing_classes")
    if names is None:
        datasets = OmegaConf.select(cfg, "dataloader.train.dataset.dataset.names")
        registered = instantiate(datasets) if datasets else None
        first = registered if isinstance(registered, str) or not registered else registered[0]
        if first in DatasetCatalog:
            if not hasattr(MetadataCatalog.get(first), "thing_classes"):
                DatasetCatalog.get(first)  # a COCO file names its classes when it is read
            names = MetadataCatalog.get(first).get("thing_classes")
    return [str(name) for name in names] if names else None


def build_train_loader(cfg: DictConfig, start_iter: int):
    """The training data loader, whose stream begins where `start_iter` iterations have ended."""
    dataset = cfg.dataloader.train.dataset
    if "start_iter" in dataset:
        dataset.start_iter = start_iter * cfg.train.accumulate
    elif start_iter:
        logger.warning("dataloader.train.dataset is no TrainingStream: the data order starts anew on resume.")
    return instantiate(cfg.dataloader.train)


def build_writers(output_dir: str, max_iter: int, start_iter: int) -> list[EventWriter]:
    """Console, `metrics.json` and TensorBoard; what a killed run wrote after its last checkpoint is dropped."""
    path = os.path.join(output_dir, "metrics.json")
    if os.path.exists(path):
        kept = list(_lines_before(path, start_iter))
        write_atomically(path, "".join(kept).encode())
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(path),
        TensorboardXWriter(output_dir, purge_step=start_iter),
    ]


def _lines_before(path: str, iteration: int) -> Iterator[str]:
    with open(path) as file:
        for line in file:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # cut off when the run was killed
                continue
            if entry.get("iteration", 0) < iteration:
                yield line
