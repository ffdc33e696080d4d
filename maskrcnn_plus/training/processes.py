"""What processes of a run do together: one acts for all, gradients are averaged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default as comm_hooks
from torch.nn.parallel import DistributedDataParallel

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def on_main_process(action: Callable[[], Result]) -> Result | None:
    """Let the main process act alone; where that fails, all processes raise its error. A collective.

    Returns:
        What the action returns; None on the other processes.
    """
    result = error = None
    if comm.is_main_process():
        try:
            result = action()
        except (OSError, ValueError) as failure:
            error = failure
    shared = comm.all_gather(error)[0]
    if shared is not None:
        raise error or shared
    return result


def share_buffers(model: nn.Module) -> None:
    """Give all processes the buffers of the main one, which are those of its checkpoints. A collective.

    The statistics of batch norms are of the images that each process has seen.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def create_distributed(cfg: DictConfig, model: nn.Module) -> nn.Module:
    """DistributedDataParallel by `train.ddp` where there is more than one process.

    `train.ddp.fp16_compression` sends gradients with 16 bits: as float16 under float16 AMP, whose loss is scaled into
    its range, and else as bfloat16, which has the range of float32. Unscaled, small gradients would vanish in float16.
    """
    options = dict(cfg.train.ddp)
    compress = options.pop("fp16_compression", False)
    device = {"device_ids": None} if cfg.train.device == "cpu" else {}
    distributed = create_ddp_model(model, **device, **options)
    if compress and isinstance(distributed, DistributedDataParallel):
        scaled = cfg.train.amp.enabled and cfg.train.amp.dtype == "float16"
        hook = comm_hooks.fp16_compress_hook if scaled else comm_hooks.bf16_compress_hook
        distributed.register_comm_hook(None, hook)
        logger.info(f"Gradients are sent as {'float16' if scaled else 'bfloat16'}.")
    return distributed
