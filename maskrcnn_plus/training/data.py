"""The data of a run: read and checked as a whole before the model is built."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.data import DatasetFromList
from detectron2.evaluation import DatasetEvaluator
from omegaconf import DictConfig, OmegaConf

from maskrcnn_plus.build import build
from maskrcnn_plus.data.check_cache import fingerprint
from maskrcnn_plus.data.learned_images import EARLIER, KEYS, image_keys, read_learned
from maskrcnn_plus.errors import ConfigError
from maskrcnn_plus.training.validation_loss import ValidationLoss
from maskrcnn_plus.weights.conversion import WeightsError

logger = logging.getLogger(__name__)


class RunData:
    """Training and test data of a config, and how the test data is judged.

    Attributes:
        test_loader: `dataloader.test`.
        validation_loss: of `train.validation_loss` images; None without.
    """

    def __init__(self, cfg: DictConfig, training: bool) -> None:
        """Read and check everything.

        Args:
            cfg: with `dataloader`; its `train.best.metric` must be one that the evaluators give.
            training: also the training data; an evaluation alone needs none.

        Raises:
            ConfigError: a part of `dataloader` cannot be built, or there is no such metric.
            DataError: the data cannot be used.
        """
        self._cfg = cfg
        self._train_parts: dict[str, Any] = {}
        if training:
            keys = [key for key in ("dataset", "mapper") if key in cfg.dataloader.train]
            self._train_parts = {key: build(cfg, f"dataloader.train.{key}") for key in keys}
        self.test_loader = build(cfg, "dataloader.test")
        evaluators = self.evaluators()
        if OmegaConf.select(cfg, "train.eval_proposals"):
            evaluators.append(build(cfg, "dataloader.proposal_evaluator"))
        if training:
            check_metric(OmegaConf.select(cfg, "train.best.metric"), evaluators)
        images = OmegaConf.select(cfg, "train.validation_loss") if training else None
        self.validation_loss = ValidationLoss(cfg, images) if images else None

    def describe(self) -> dict[str, Any]:
        """Of both splits: numbers of images and objects, a fingerprint of names, sizes and boxes, and `image_keys`."""
        stream, test = self._train_parts.get("dataset"), getattr(self.test_loader, "dataset", None)
        splits = {"train": getattr(stream, "dataset", None), "test": getattr(test, "_dataset", None)}
        about = {split: _describe(data) for split, data in splits.items() if isinstance(data, DatasetFromList)}
        earlier: dict[str, str] = {}
        with contextlib.suppress(WeightsError):  # those who load it will say so; a resumed training does not need it
            earlier = read_learned(OmegaConf.select(self._cfg, "train.init_checkpoint"))
        if "train" in about and earlier:
            about["train"][EARLIER] = "".join(sorted(key for key, part in earlier.items() if part == "train"))
        return about

    def evaluators(self) -> list[DatasetEvaluator]:
        """New evaluators of the test data; they hold its annotations only as long as they are needed."""
        evaluators = build(self._cfg, "dataloader.evaluator")
        return [evaluators] if hasattr(evaluators, "process") else list(evaluators)

    def train_loader(self, start_iter: int) -> Iterable[list[dict]]:
        """`dataloader.train`, whose stream begins where `start_iter` iterations have ended."""
        return build_train_loader(self._cfg, start_iter, **self._train_parts)


def _describe(dicts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a split; the fingerprint is the same wherever the files lie."""
    lines = []
    for record in dicts:
        objects = [
            (entry.get("category_id"), *map(float, entry.get("bbox", ()))) for entry in record.get("annotations", [])
        ]
        lines.append(
            [os.path.basename(str(record.get("file_name", ""))), record.get("height"), record.get("width"), objects]
        )
    return {
        "images": len(lines),
        "objects": sum(len(line[-1]) for line in lines),
        "fingerprint": fingerprint(sorted(lines, key=str), ()),
        KEYS: image_keys(dicts),
    }


def build_train_loader(cfg: DictConfig, start_iter: int, **parts: Any) -> Iterable[list[dict]]:
    """The training data loader, whose stream begins where `start_iter` iterations have ended.

    Args:
        cfg: with `dataloader.train` and `train`.
        start_iter: first iteration, from 0.
        **parts: arguments of the loader that are built already; its dataset is built here otherwise.
    """
    node = cfg.dataloader.train
    if "dataset" in node:
        if "dataset" not in parts:
            parts["dataset"] = build(cfg, "dataloader.train.dataset")
        dataset = parts["dataset"]
        if hasattr(dataset, "start_iter"):
            dataset.start_iter = start_iter * cfg.train.accumulate
        elif start_iter:
            logger.warning("dataloader.train.dataset is no TrainingStream: the data order starts anew on resume.")
    if "settings" in node:
        node.settings = None  # this trainer reads them
    return build(cfg, "dataloader.train", **parts)


def check_metric(metric: str | None, evaluators: Sequence[DatasetEvaluator]) -> None:
    """Refuse a `train.best.metric` that no evaluation will give.

    Args:
        metric: as in metrics.json, e.g. "segm/AP"; "" and None choose no best weights.
        evaluators: ours tell their `metric_names`; with others among them nothing is refused, but warned of.

    Raises:
        ConfigError: none of the evaluators gives it; the message has the nearest that they give.
    """
    silent = [type(evaluator).__name__ for evaluator in evaluators if not hasattr(evaluator, "metric_names")]
    known = [name for each in evaluators if hasattr(each, "metric_names") for name in each.metric_names()]
    if not metric or metric in known:
        return
    near = [name for name in known if name.rpartition("/")[2] == metric]
    near = near or difflib.get_close_matches(metric, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(known)}."
    if silent:
        logger.warning(
            f"train.best.metric={metric} is looked for at the first evaluation only: {', '.join(silent)} does not tell "
            f"beforehand what it gives. {hint if near else ''}"
        )
    else:
        raise ConfigError(f"train.best.metric={metric} is no figure of the evaluators. {hint}", "train.best.metric")
