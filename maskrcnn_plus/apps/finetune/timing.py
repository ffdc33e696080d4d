"""How long a training step and an evaluated image take on this machine, measured."""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import torch
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig

from maskrcnn_plus.build import build
from maskrcnn_plus.config import skip_pretrained
from maskrcnn_plus.device import emulates_bfloat16
from maskrcnn_plus.input_channels import follow_dataset_channels
from maskrcnn_plus.training.data import RunData
from maskrcnn_plus.training.loop import Trainer
from maskrcnn_plus.training.run import build_model

_WARM_UP, _STEPS, _IMAGES = 2, 5, 3


class Timing(NamedTuple):
    """Medians in seconds.

    Attributes:
        step: an optimizer step with its data.
        image: an image of the validation data, predicted by a model that has learned nothing.
        bfloat16: whether the step was faster in bfloat16, and is of it.
    """

    step: float
    image: float
    bfloat16: bool


def measure_speed(cfg: DictConfig) -> Timing:
    """Train some steps and predict some images as a config says.

    Args:
        cfg: of a training, which stays as it is. The weights do not matter here, so none are loaded.

    Raises:
        ConfigError, DataError: as of a training.
    """
    cfg = cfg.copy()
    skip_pretrained(cfg)
    follow_dataset_channels(cfg)
    cfg.train.validation_loss = 0
    data = RunData(cfg, training=True)
    device = torch.device(cfg.train.device)
    times = {}
    for dtype in (None, "bfloat16"):
        if dtype and emulates_bfloat16(device.type):
            continue
        model = build_model(cfg)
        cfg.optimizer.params.model = model
        optimizer = build(cfg, "optimizer")
        cfg.optimizer.params.model = None
        trainer = Trainer(model, data.train_loader(0), optimizer, amp_dtype=dtype, accumulate=cfg.train.accumulate)
        times[dtype] = _median_step(trainer, device)
    fastest = min(times, key=times.get)
    image = _median_image(model, data, device)
    return Timing(times[fastest], image, fastest is not None)


def _median_step(trainer: Trainer, device: torch.device) -> float:
    seconds = []
    with EventStorage() as trainer.storage:
        for trainer.iter in range(_WARM_UP + _STEPS):
            start = time.perf_counter()
            trainer.run_step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[_WARM_UP:])


def _median_image(model: torch.nn.Module, data: RunData, device: torch.device) -> float:
    seconds = []
    model.eval()
    with torch.inference_mode():
        for batch, _ in zip(data.test_loader, range(_IMAGES), strict=False):
            start = time.perf_counter()
            model(batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append((time.perf_counter() - start) / len(batch))
    return statistics.median(seconds) if seconds else 0.0
