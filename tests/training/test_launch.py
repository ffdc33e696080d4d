"""Several processes: NCCL on GPUs, gloo on CPUs whatever the machine has, and refusals before anything starts."""

import argparse
import sys

import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf

from maskrcnn_plus.training.launch import launch


@pytest.fixture
def machine(monkeypatch):
    """A machine with 2 GPUs; records what is started."""
    started = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: started.update(device=device))
    monkeypatch.setattr(dist, "init_process_group", lambda backend: started.update(backend=backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr("detectron2.utils.comm.create_local_process_group", lambda size: None, raising=False)
    module = sys.modules[launch.__module__]
    monkeypatch.setattr(module, "detectron2_launch", lambda main, number, **options: started.update(gpus=number))
    return started


def arguments(num_gpus=1):
    return argparse.Namespace(num_gpus=num_gpus, num_machines=1, machine_rank=0, dist_url="auto")


def on(device):
    return OmegaConf.create({"train": {"device": device}})


def under_torchrun(monkeypatch, processes=2):
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", str(processes))):
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", {"backend": "gloo"}),
        ("cuda", {"backend": "nccl", "device": 1}),
        ("auto", {"backend": "nccl", "device": 1}),
    ],
)
def test_processes_of_torchrun_talk_by_the_device_of_the_training(machine, monkeypatch, device, expected):
    under_torchrun(monkeypatch)
    launch(lambda args, cfg: None, arguments(), on(device))
    assert machine == expected


@pytest.mark.parametrize(
    ("device", "processes", "message"),
    [
        ("cuda", 3, "torchrun --nproc-per-node 3: this machine has 2 CUDA devices"),
        ("cuda:1", 2, r"train\.device=cuda:1: each process takes a device of its own"),
    ],
)
def test_torchrun_needs_a_device_a_process(machine, monkeypatch, device, processes, message):
    under_torchrun(monkeypatch, processes)
    with pytest.raises(ValueError, match=message):
        launch(lambda args, cfg: None, arguments(), on(device))
    assert machine == {}


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        ("cpu", 2, r"--num-gpus 2: train\.device is cpu.*torchrun --nproc-per-node 2"),
        ("auto", 3, r"--num-gpus 3: this machine has 2 CUDA devices.*torchrun --nproc-per-node 3"),
        ("cuda:0", 2, "each process takes a device of its own"),
    ],
)
def test_num_gpus_needs_gpus(machine, device, gpus, message):
    with pytest.raises(ValueError, match=message):
        launch(lambda args, cfg: None, arguments(gpus), on(device))
    assert machine == {}


def test_several_machines_without_gpus_are_told_how(machine):
    args = arguments()
    args.num_machines = 2
    with pytest.raises(ValueError, match=r"torchrun --nnodes 2 --node-rank N .*--nproc-per-node 1 tools/train_net"):
        launch(lambda args, cfg: None, args, on("cpu"))
    assert machine == {}


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 1), ("cuda:1", 1), ("cuda", 2), ("auto", 2)])
def test_num_gpus_starts_detectron2s_processes(machine, device, gpus):
    launch(lambda args, cfg: None, arguments(gpus), on(device))
    assert machine == {"gpus": gpus}


@pytest.mark.parametrize(
    ("shared", "restarts", "count", "outcome"),
    [("True", "3", "0", "said"), ("True", "3", "1", "refused"), ("True", "0", "0", ""), ("False", "3", "1", "")],
)
def test_a_restart_that_would_wait_for_ever_is_refused(machine, monkeypatch, caplog, shared, restarts, count, outcome):
    under_torchrun(monkeypatch)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
    if outcome == "refused":
        with pytest.raises(ValueError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
            launch(lambda args, cfg: None, arguments(), on("cpu"))
        return
    launch(lambda args, cfg: None, arguments(), on("cpu"))
    assert ("will not work: start torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in caplog.text) == bool(outcome)
