"""The losses of a training on validation images, which tell learning from learning by heart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn

from maskrcnn_plus.build import build

_SEED = 0


class ValidationLoss:
    """Losses of validation images as they are evaluated: not augmented, each a batch of its own."""

    def __init__(self, cfg: DictConfig, limit: int) -> None:
        """Choose the images.

        Args:
            cfg: with `dataloader.test.dataset` and `dataloader.test.mapper`, which has `is_train`.
            limit: at most so many images, evenly spread over the data set.

        Raises:
            ConfigError: a part cannot be built.
            DataError: the data cannot be used.
        """
        records = build(cfg, "dataloader.test.dataset")
        chosen = np.linspace(0, len(records) - 1, min(limit, len(records))).round().astype(int)
        self._records = [records[index] for index in chosen]
        changed = cfg.copy()
        changed.dataloader.test.mapper.is_train = True
        self._mapper = build(changed, "dataloader.test.mapper")

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Mean losses; neither the model nor any generator of random numbers changes. A collective.

        Args:
            model: not in DistributedDataParallel. Its batch norms keep their statistics, as in an evaluation.

        Returns:
            "val_loss", the sum, and "val_loss_NAME" of each of the model's losses; empty on all but the main process,
            and where no image could be used.
        """
        records = self._records[comm.get_rank() :: comm.get_world_size()]
        was_training = [module for module in model.modules() if module.training]
        model.train()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        try:
            with torch.random.fork_rng(), torch.no_grad(), EventStorage():
                losses = [self._losses(model, example) for example in self._examples(records)]
        finally:
            model.eval()
            for module in was_training:
                module.training = True
        losses = [entry for part in comm.gather(losses) for entry in part]
        if not losses:
            return {}
        means = {name: float(np.mean([entry[name] for entry in losses])) for name in losses[0]}
        named = {f"val_loss_{name.removeprefix('loss_')}": value for name, value in means.items()}
        return {"val_loss": sum(means.values()), **named}

    def _examples(self, records: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        """Training examples of dataset dicts that can be used."""
        return (example for record in records if (example := self._mapper(dict(record))) is not None)

    @staticmethod
    def _losses(model: nn.Module, example: dict[str, Any]) -> dict[str, float]:
        torch.manual_seed(_SEED)  # proposals and RoIs are sampled
        return {name: float(value) for name, value in model([example]).items()}
