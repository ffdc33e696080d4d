"""Detectron2's training loader for a `TrainingStream`, at home in trainers that are not of this package too.

`maskrcnn_plus.training` says itself where the stream of a resumed run begins, and reads all of a config's `train`.
Detectron2's trainers, such as that of its `tools/lazyconfig_train_net.py`, build the loader before they know where they
begin, and read of `train` what Detectron2's own configs have there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from detectron2.data import build_detection_train_loader
from detectron2.utils.events import get_event_storage
from omegaconf import OmegaConf

# Below the logger that Detectron2's trainers set up, so that it is on their console and in their log.txt.
logger = logging.getLogger(f"detectron2.{__name__}")

# What Detectron2's trainers do, whatever these keys of `train` say.
DETECTRON2_DOES = {
    "accumulate": 1,
    "clip_grad_norm": 0,
    "channels_last": False,
    "ema.enabled": False,
    "best.metric": "",
    "max_hours": 0.0,
    "patience": 0,
    "validation_loss": 0,
    "logger": [],
    "eval_proposals": False,
}


class TrainLoader:
    """`build_detection_train_loader` that begins at the iteration of the trainer that asks for the first batch."""

    def __init__(self, dataset: Any, *, settings: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Build Detectron2's loader.

        Args:
            dataset: a `TrainingStream`, or what else Detectron2's function takes.
            settings: a config's `train`, for a trainer that may be another than this package's: the stream begins at
                its iteration, and what it does not read is logged. None leaves the stream where it is.
            **kwargs: those of Detectron2's function.
        """
        self.dataset = dataset
        self.settings = settings
        self.loader = build_detection_train_loader(dataset, **kwargs)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """Iterate over batches, without end."""
        # A DataLoader draws from PyTorch's generator when its iterator is made: this package's trainer has that done
        # before it seeds an iteration.
        return iter(self.loader) if self.settings is None else self._iterate_for_any_trainer()

    def _iterate_for_any_trainer(self) -> Iterator[list[dict[str, Any]]]:
        # A generator: nothing happens before the first batch is asked for, as trainers ask for the iterator too early.
        iteration = _get_iteration()
        if iteration is not None:
            if unread := unread_settings(self.settings):
                logger.warning(
                    f"This trainer does not read {', '.join(unread)}, and does without; this package's does "
                    "(maskrcnn_plus.training.run, tools/train_net.py)."
                )
            if hasattr(self.dataset, "start_iter"):
                self.dataset.start_iter = iteration
            elif iteration:
                logger.warning("dataloader.train.dataset is no TrainingStream: the data order starts anew on resume.")
        with torch.random.fork_rng(devices=[]):  # making the iterator draws a number, which is one of the model's
            batches = iter(self.loader)
        yield from batches


def unread_settings(settings: Mapping[str, Any]) -> list[str]:
    """The keys of a config's `train` that Detectron2's trainers ignore and that ask for something, as "key=value"."""
    wanted = {key: OmegaConf.select(settings, key, default=default) for key, default in DETECTRON2_DOES.items()}
    unread = [f"train.{key}={value}" for key, value in wanted.items() if value != DETECTRON2_DOES[key]]
    if OmegaConf.select(settings, "amp.enabled") and OmegaConf.select(settings, "amp.dtype") == "bfloat16":
        unread.append("train.amp.dtype=bfloat16 (on GPUs it takes float16)")
    return unread


def _get_iteration() -> int | None:
    try:
        return get_event_storage().iter
    except AssertionError:  # it is no trainer that asks
        return None
