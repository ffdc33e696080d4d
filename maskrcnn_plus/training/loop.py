"""The training step: mixed precision, gradient accumulation and clipping, and a stop before bad numbers do harm.

Randomness is a function of (seed, iteration, rank): each iteration seeds PyTorch's generator anew, so that a resumed
run draws the same proposals as an uninterrupted one. The order of the data is the data stream's business.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from maskrcnn_plus.data.stream import SKIPPED
from maskrcnn_plus.device import emulates_bfloat16
from maskrcnn_plus.training.fast_gradients import use_fast_convolutions
from maskrcnn_plus.training.optimizer_state import get_parameters, restore_optimizer
from maskrcnn_plus.training.skipped import SkippedImages
from maskrcnn_plus.weights.conversion import WeightsError

logger = logging.getLogger(__name__)

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Trainer(TrainerBase):
    """Detectron2's training loop over one model, one data loader and one optimizer."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict]],
        optimizer: torch.optim.Optimizer,
        *,
        amp_dtype: str | None = None,
        accumulate: int = 1,
        clip_grad_norm: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Set the model to training mode and keep its parts.

        Args:
            model: returns a dict of scalar losses for a batch (list of dicts).
            data_loader: endless; its iterator is made at the first step.
            amp_dtype: "bfloat16" or "float16" (CUDA only) for automatic mixed precision, None for full precision.
            accumulate: batches whose gradients are averaged before one optimizer step.
            clip_grad_norm: largest allowed L2 norm of all gradients together; 0 does not clip.
            seed: of the randomness inside the model.
        """
        super().__init__()
        if accumulate < 1:
            raise ValueError(f"train.accumulate must be at least 1, got {accumulate}.")
        if clip_grad_norm < 0:
            raise ValueError(f"train.clip_grad_norm must not be negative, got {clip_grad_norm}.")
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.accumulate = accumulate
        self.clip_grad_norm = clip_grad_norm
        self.seed = seed
        self.device_type = next(model.parameters()).device.type
        self.amp_dtype = _amp_dtype(amp_dtype, self.device_type)
        if self.device_type == "cpu":
            use_fast_convolutions(model, self.amp_dtype)
        scaled = self.amp_dtype is torch.float16
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=scaled)
        self.skipped = SkippedImages()
        self._batches = None

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations from `start_iter` to before `max_iter`, which a hook may change while they run.

        An error ends it and goes to the caller; Detectron2's loop would log its traceback as well.
        """
        logger.info(f"Starting training from iteration {start_iter}")
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                while self.iter < self.max_iter:
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
            finally:
                self.after_train()

    def after_train(self) -> None:
        """Run the hooks, then name the images that were left out."""
        super().after_train()
        self.skipped.report()

    def run_step(self) -> None:
        """One optimizer step."""
        if self._batches is None:
            self._batches = iter(self.data_loader)
        _seed_torch(self.seed, self.iter)
        self.optimizer.zero_grad()
        totals: dict[str, float] = {}
        data_time = 0.0
        skipped: list[tuple[str, str]] = []
        for part in range(self.accumulate):
            start = time.perf_counter()
            batch = next(self._batches)
            data_time += time.perf_counter() - start
            skipped += [each for example in batch for each in example.get(SKIPPED, ())]
            last = part == self.accumulate - 1
            for name, value in self._backward(batch, synchronise=last).items():
                totals[name] = totals.get(name, 0.0) + value / self.accumulate
        self._check_and_step(batch)
        self._write_metrics(totals, data_time, skipped)

    def _backward(self, batch: list[dict], synchronise: bool) -> dict[str, float]:
        """Forward and backward of one batch; returns its losses as numbers."""
        distributed = isinstance(self.model, DistributedDataParallel)
        wait = contextlib.nullcontext() if synchronise or not distributed else self.model.no_sync()
        with wait:
            try:
                with torch.autocast(self.device_type, self.amp_dtype, enabled=self.amp_dtype is not None):
                    losses = self.model(batch)
            except FloatingPointError as error:  # Detectron2's RPN checks its own predictions
                raise FloatingPointError(self._diverged(str(error), batch)) from error
            numbers = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
            values = dict(zip(losses, numbers, strict=True))
            if not all(map(math.isfinite, values.values())):
                raise FloatingPointError(self._diverged(f"losses {values}", batch))
            self.grad_scaler.scale(sum(losses.values()) / self.accumulate).backward()
        return values

    def _check_and_step(self, batch: list[dict]) -> None:
        """Clip the gradients and step, unless they are not finite."""
        self.grad_scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.clip_grad_norm:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_grad_norm, norm)
        norm = float(norm)
        if not self.grad_scaler.is_enabled() and not math.isfinite(norm):
            raise FloatingPointError(self._diverged(f"gradient norm {norm}", batch))
        self.grad_scaler.step(self.optimizer)  # skips the step where float16 overflowed
        self.grad_scaler.update()
        self.storage.put_scalar("grad_norm", norm, smoothing_hint=False)

    def _diverged(self, what: str, batch: list[dict]) -> str:
        names = ", ".join(str(entry.get("file_name", entry.get("image_id", "?"))) for entry in batch)
        return (
            f"Training diverged at iteration {self.iter}: {what.rstrip('.')}. Images of the batch: {names}. "
            "Neither the weights nor earlier checkpoints were changed by it; look at these images and their "
            "annotations, lower optimizer.lr, or set train.clip_grad_norm."
        )

    def _write_metrics(self, losses: dict[str, float], data_time: float, skipped: list[tuple[str, str]]) -> None:
        """Average the losses over all processes and record them unsmoothed; note the images that were left out."""
        gathered = comm.gather({**losses, "data_time": data_time, "skipped": skipped})
        if not comm.is_main_process():
            return
        self.skipped.add(each for entry in gathered for each in entry.pop("skipped"))
        self.storage.put_scalar("data_time", max(entry.pop("data_time") for entry in gathered))
        means = {name: float(np.mean([entry[name] for entry in gathered])) for name in gathered[0]}
        self.storage.put_scalar("total_loss", sum(means.values()), smoothing_hint=False)
        self.storage.put_scalars(**means, smoothing_hint=False)

    def state_dict(self) -> dict[str, Any]:
        """Iteration, optimizer with the names of its parameters, gradient scaler and hooks."""
        return {
            **super().state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "parameters": get_parameters(self.optimizer, unwrap(self.model)),
            "grad_scaler": self.grad_scaler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Counterpart of `state_dict`; the settings of the optimizer stay those that it was built with.

        Raises:
            WeightsError: the state is of other parameters or another optimizer.
        """
        iteration = state_dict["iteration"]
        if not isinstance(iteration, int) or iteration < 0:
            raise WeightsError(f"its iteration is {iteration!r}.")
        changed = restore_optimizer(
            self.optimizer, unwrap(self.model), state_dict["optimizer"], state_dict.get("parameters")
        )
        if changed:
            logger.warning(f"Settings that are not those of the checkpoint: {', '.join(changed)}.")
        super().load_state_dict(state_dict)
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, where it is in DistributedDataParallel."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _amp_dtype(name: str | None, device_type: str) -> torch.dtype | None:
    if name is None:
        return None
    if name not in AMP_DTYPES:
        raise ValueError(f"train.amp.dtype must be one of {', '.join(AMP_DTYPES)}, got {name!r}.")
    if name == "float16" and device_type == "cpu":
        raise ValueError("train.amp.dtype=float16 needs a GPU; on a CPU use train.amp.dtype=bfloat16.")
    if name == "bfloat16" and emulates_bfloat16(device_type):
        logger.warning("This CPU has no bfloat16 instructions: train.amp.enabled=false is faster.")
    return AMP_DTYPES[name]


def _seed_torch(seed: int, iteration: int) -> None:
    """Seed PyTorch's generators from (seed, iteration, rank), the same whether or not the run was resumed."""
    sequence = np.random.SeedSequence((seed, iteration, comm.get_rank()))
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
