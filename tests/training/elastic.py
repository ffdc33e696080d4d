"""Runs under torchrun's agent, for test_elastic: `python elastic.py FOLDER SCENARIO`.

Workers are forks, so that PyTorch is imported once; the agent, the rendezvous and the restarts are torchrun's.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import detectron2.engine.defaults
import tiny
import torch
from detectron2.utils import comm
from omegaconf import DictConfig
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from maskrcnn_plus.training import launch

ITERATIONS = 12


def train(folder: str, kill_rank: int, kill_at: int) -> None:
    """A process of a run, as tools/train_net.py; that of one rank kills itself once, at an iteration."""
    torch.set_num_threads(1)
    stream = tiny.Stream.__iter__

    def iterate(self):
        for batch in stream(self):
            first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and not Path(folder, "killed").exists()
            if first and batch[0]["index"] == kill_at and comm.get_rank() == kill_rank:
                Path(folder, "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    tiny.Stream.__iter__ = iterate

    def main(_: argparse.Namespace, cfg: DictConfig) -> None:
        Path(folder, f"world-{time.time_ns()}-{comm.get_rank()}").write_text(str(comm.get_world_size()))
        tiny.execute(cfg, resume=True)

    cfg = tiny.config(folder, max_iter=ITERATIONS, eval_period=6, checkpointer={"period": 3, "max_to_keep": 2})
    launch(main, argparse.Namespace(num_gpus=1, num_machines=1, machine_rank=0, dist_url="auto"), cfg)


def agent(folder: str, kill_rank: int, kill_at: int) -> None:
    """The agent that torchrun is, with two processes."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint=f"127.0.0.1:{free_port()}",
        rdzv_configs={"timeout": 60},
        max_restarts=3,
        monitor_interval=0.1,
        start_method="fork",
    )
    elastic_launch(config, train)(folder, kill_rank, kill_at)


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def uninterrupted(folder: str) -> None:
    """Two processes, none of which is killed."""
    agent(folder, -1, -1)


def killed(folder: str) -> None:
    """Two processes, one of which is killed at a random iteration."""
    rng = random.Random(int(os.environ.get("SEED", "0")))
    agent(folder, rng.randrange(2), rng.randrange(1, ITERATIONS - 1))


if __name__ == "__main__":
    detectron2.engine.defaults.collect_env_info = str
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.makedirs(sys.argv[1], exist_ok=True)
    globals()[sys.argv[2]](sys.argv[1])
