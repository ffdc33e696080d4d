"""Runs of two processes: who writes, who stops when, and what they send each other."""

import fcntl
import json
import os
from pathlib import Path

import pytest
import torch
from fork_server import Script


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The folder of all scenarios and the exit codes of their processes."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "is_refused").mkdir()
    with open(folder / "is_refused/.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        script = Script(Path(__file__).with_name("two_processes.py"), folder)
        text = script.communicate(timeout=500)
    assert script.returncode == 0, text[-3000:]
    return folder, json.loads(text.splitlines()[-1]), text


def test_the_main_process_alone_writes_and_removes(ended):
    folder, codes, errors = ended
    assert codes["finishes"] == [0, 0], errors[-3000:]
    names = sorted(os.listdir(folder / "finishes"))
    assert [name for name in names if name.endswith(".pth")] == [
        "model_0000004.pth",
        "model_best.pth",
        "model_final.pth",
    ]
    assert (folder / "finishes/last_checkpoint").read_text() == "model_final.pth"
    assert not [name for name in names if name.endswith(".tmp")]
    assert len((folder / "finishes/metrics.json").read_text().splitlines()) == 7


@pytest.mark.parametrize("scenario", ["in_training", "in_evaluation", "at_the_last_image", "in_proposals"])
def test_a_signal_to_one_process_ends_all_with_a_checkpoint(ended, scenario):
    folder, codes, errors = ended
    assert codes[scenario] == [0, 0], errors[-3000:]
    names = os.listdir(folder / scenario)
    assert {"stopped0", "stopped1"} <= set(names)
    last = "model_0000002.pth" if scenario == "in_training" else "model_0000001.pth"
    assert (folder / scenario / "last_checkpoint").read_text() == last
    iteration = torch.load(folder / scenario / last, weights_only=True)["trainer"]["iteration"]
    assert iteration == int(last[6:13])
    assert "model_best.pth" not in names  # results of some of the images are none


def test_a_signal_ends_an_evaluation_alone(ended):
    folder, codes, errors = ended
    assert codes["in_evaluation_alone"] == [0, 0], errors[-3000:]
    assert {"stopped0", "stopped1", "eval"} == set(os.listdir(folder / "in_evaluation_alone/run"))


def test_all_processes_hear_that_the_folder_is_taken(ended):
    folder, codes, _ = ended
    assert codes["is_refused"] == [0, 0]
    for rank in range(2):
        assert "another run is writing to this folder" in (folder / f"is_refused/refused{rank}").read_text()


def test_small_gradients_survive_their_compression(ended):
    folder, codes, errors = ended
    assert codes["compresses"] == [0, 0], errors[-3000:]
    for rank in range(2):
        gradient = torch.load(folder / f"compresses/gradient{rank}.pt", weights_only=True)
        torch.testing.assert_close(gradient, torch.full((1, 2), 1.5e-9), rtol=2**-7, atol=0.0)
