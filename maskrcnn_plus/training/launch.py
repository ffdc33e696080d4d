"""One process or several: `--num-gpus`, `torchrun`, or neither. The one place that knows how the Detectron2s differ."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from omegaconf import DictConfig

from maskrcnn_plus.device import named_device


def launch(
    main: Callable[[argparse.Namespace, DictConfig | None], object], args: argparse.Namespace, cfg: DictConfig
) -> None:
    """Run `main(args, cfg)` in this process, or `main(args, None)` in each of several that are started.

    Under `torchrun` the processes exist already; `--num-gpus N` starts N of them (CUDA).

    Args:
        main: what each process runs. One that is started loads the config itself, which may hold what cannot be sent
            there; this process has loaded it, and a module that a config file changes would be changed twice.
        args: of `detectron2.engine.default_argument_parser`.
        cfg: its `train.device` says how several processes talk: on CPUs by gloo, on GPUs by NCCL.

    Raises:
        ValueError: `--num-gpus` or torchrun asks for more devices than there are, or for several processes on one; or a
            restart of torchrun that cannot work, see `_check_restart`.
    """
    kind = named_device(cfg.train.device)  # a tensor there now would be on the first GPU in each process
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _join_torchrun(kind)
        try:
            main(args, cfg)
        finally:
            dist.destroy_process_group()
        return
    several = args.num_gpus * args.num_machines > 1
    if several:
        _check_devices(kind, args.num_gpus, f"--num-gpus {args.num_gpus}", args.num_machines)
    detectron2_launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args, None if several else cfg),
    )


def _check_devices(device: torch.device, processes: int, asked_by: str, machines: int = 1) -> None:
    """Refuse what Detectron2 or CUDA would end with an assertion, in each process."""
    devices = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.index is not None and processes > 1:
        raise ValueError(
            f"{asked_by} with train.device={device}: each process takes a device of its own, use train.device=cuda."
        )
    if processes > devices:
        reason = f"this machine has {devices} CUDA devices" if device.type == "cuda" else f"train.device is {device}"
        nodes = f"--nnodes {machines} --node-rank N --master-addr ADDRESS " if machines > 1 else ""
        raise ValueError(
            f"{asked_by}: {reason}. To train with several processes on CPUs: torchrun {nodes}--nproc-per-node "
            f"{processes} tools/train_net.py ... train.device=cpu"
        )


def _check_restart() -> None:
    """Refuse a restart that would wait for processes that are gone, and say so before.

    torchrun keeps the store in which processes find each other over restarts, where they then find the addresses of
    those before them.

    Raises:
        ValueError: torchrun started the processes again and shares its store.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("TORCHELASTIC_MAX_RESTARTS") == "0":
        return
    remedy = "start torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment"
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        raise ValueError(f"torchrun cannot start processes again that share its store: {remedy}; --resume goes on")
    logging.getLogger(__name__).warning(f"A restart of torchrun (--max-restarts) will not work: {remedy}.")


def _join_torchrun(device: torch.device) -> None:
    """Join the process group of `torchrun` and make Detectron2's group of this machine's processes."""
    _check_restart()
    local_rank = int(os.environ["LOCAL_RANK"])
    local_size = int(os.environ["LOCAL_WORLD_SIZE"])
    if device.type == "cuda":
        _check_devices(device, local_size, f"torchrun --nproc-per-node {local_size}")
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if hasattr(comm, "create_local_process_group"):  # Detectron2's development head
        comm.create_local_process_group(local_size)
    else:  # v0.6 sets it inside its own launcher only
        machine = dist.get_rank() // local_size
        for index in range(dist.get_world_size() // local_size):
            group = dist.new_group(list(range(index * local_size, (index + 1) * local_size)))
            if index == machine:
                comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()
