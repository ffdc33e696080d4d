"""One process or several: `--num-gpus`, `torchrun`, or neither. The one place that knows how the Detectron2s differ."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm


def launch(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run `main(args)` in this process, or in each of several.

    Under `torchrun` the processes exist already; `--num-gpus N` starts N of them (CUDA).

    Raises:
        SystemExit: `--num-gpus` asks for more devices than there are.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _join_torchrun()
        try:
            main(args)
        finally:
            dist.destroy_process_group()
        return
    devices = torch.cuda.device_count()
    if args.num_gpus > 1 and args.num_gpus > devices:
        raise SystemExit(
            f"--num-gpus {args.num_gpus}: this machine has {devices} CUDA devices. To train with several processes on "
            f"CPUs: torchrun --nproc-per-node {args.num_gpus} tools/train_net.py ..."
        )
    detectron2_launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def _join_torchrun() -> None:
    """Join the process group of `torchrun` and make Detectron2's group of this machine's processes."""
    local_rank = int(os.environ["LOCAL_RANK"])
    local_size = int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if hasattr(comm, "create_local_process_group"):  # Detectron2's development head
        comm.create_local_process_group(local_size)
    else:  # v0.6 sets it inside its own launcher only
        machine = dist.get_rank() // local_size
        for index in range(dist.get_world_size() // local_size):
            group = dist.new_group(list(range(index * local_size, (index + 1) * local_size)))
            if index == machine:
                comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()
