"""Two processes of one run, for test_processes: `python two_processes.py FOLDER [SCENARIO ...]`."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path

import detectron2.engine.defaults
import tiny
import torch
import torch.distributed as dist
from detectron2.utils import comm

from maskrcnn_plus.checkpoints import Checkpointer

LIMIT = 60  # seconds


def in_training(folder: Path) -> None:
    """A signal to the second process in the third iteration."""
    stream = tiny.Stream.__iter__

    def iterate(self):
        for batch in stream(self):
            if batch[0]["index"] == 2 and comm.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    tiny.Stream.__iter__ = iterate
    stops(folder)


def in_evaluation(folder: Path) -> None:
    """A signal to the second process before its only image, where the first one has two."""
    tiny.kill_at(1, rank=1)
    stops(folder, eval_period=2)


def at_the_last_image(folder: Path) -> None:
    """A signal to the first process when the second one waits for it in the evaluator."""
    tiny.kill_at(2, rank=0, number=signal.SIGINT)
    stops(folder, number=signal.SIGINT, eval_period=2)


def in_proposals(folder: Path) -> None:
    """A signal in the evaluation of proposals."""
    tiny.kill_at(101, rank=1)
    stops(folder, eval_period=2, eval_proposals=True)


def in_evaluation_alone(folder: Path) -> None:
    """A signal with --eval-only."""
    if comm.is_main_process():
        Checkpointer(tiny.Model(), str(folder)).save("weights", tag=False)
    comm.synchronize()
    tiny.kill_at(1, rank=1)
    stops(
        folder / "run",
        eval_only=True,
        init_checkpoint=str(folder / "weights.pth"),
        ema={"enabled": False, "decay": 0.9},
    )


def finishes(folder: Path) -> None:
    """No signal: everything is written once, old checkpoints are removed, and nothing stays behind."""
    tiny.execute(tiny.config(folder, eval_period=2, eval_proposals=True, checkpointer={"period": 1, "max_to_keep": 1}))


def is_refused(folder: Path) -> None:
    """The folder is another run's: all processes hear of it."""
    try:
        tiny.execute(tiny.config(folder))
    except BlockingIOError as error:
        (folder / f"refused{comm.get_rank()}").write_text(str(error))


def compresses(folder: Path) -> None:
    """Gradients too small for float16 reach the weights of both processes."""
    from maskrcnn_plus.training.processes import create_distributed

    cfg = tiny.config(folder, ddp={"fp16_compression": True}, amp={"enabled": True, "dtype": "bfloat16"})
    model = create_distributed(cfg, torch.nn.Linear(2, 1, bias=False))
    model(torch.full((1, 2), 1e-9 * (1 + comm.get_rank()))).sum().backward()
    torch.save(model.module.weight.grad, folder / f"gradient{comm.get_rank()}.pt")


def stops(folder: Path, number: int = signal.SIGTERM, eval_only: bool = False, **settings: object) -> None:
    """A run that must end by the signal's exit code."""
    try:
        tiny.execute(tiny.config(folder, **settings), eval_only=eval_only)
    except SystemExit as ended:
        if ended.code != 128 + number:
            raise
        (folder / f"stopped{comm.get_rank()}").touch()


def _process(rank: int, port: int, scenario: str, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    SCENARIOS[scenario](folder)
    dist.destroy_process_group()


def _run(scenario: str, folder: Path) -> list[int | None]:
    """Exit codes of the two processes; None of one that did not end."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # PyTorch is imported once
    processes = [context.Process(target=_process, args=(rank, port, scenario, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    end = time.monotonic() + LIMIT
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


SCENARIOS = {
    function.__name__: function
    for function in (
        finishes,
        in_training,
        in_evaluation,
        at_the_last_image,
        in_proposals,
        in_evaluation_alone,
        is_refused,
        compresses,
    )
}

if __name__ == "__main__":
    detectron2.engine.defaults.collect_env_info = str
    names = sys.argv[2:] or list(SCENARIOS)
    print(json.dumps({name: _run(name, Path(sys.argv[1], name)) for name in names}))
