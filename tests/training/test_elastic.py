"""Restarts of torchrun's agent: a killed process costs the iterations since the last checkpoint and nothing else."""

import random
from pathlib import Path

import pytest
from fork_server import Script
from tiny import entries, equal, load, without_config

SCRIPT = Path(__file__).with_name("elastic.py")


def run(folder, scenario, **environment):
    script = Script(SCRIPT, folder, scenario, environment=environment)
    text = script.communicate(timeout=240)
    assert script.returncode == 0, text[-4000:]
    return text


def world_sizes(folder):
    """Of each start of the training, in turn."""
    return [int(path.read_text()) for path in sorted(folder.glob("world-*"))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder, "uninterrupted")
    return folder


def test_a_killed_process_is_started_again_and_the_losses_are_those_of_an_uninterrupted_run(whole, tmp_path):
    seed = random.randrange(10**6)
    run(tmp_path, "killed", SEED=str(seed))
    assert (tmp_path / "killed").exists()
    assert world_sizes(tmp_path) == [2, 2, 2, 2]
    assert world_sizes(whole) == [2, 2]
    assert [entry["iteration"] for entry in entries(tmp_path)] == [entry["iteration"] for entry in entries(whole)]
    assert entries(tmp_path) == entries(whole), f"seed {seed}"
    ours, theirs = (without_config(load(folder / "model_final.pth")) for folder in (tmp_path, whole))
    assert equal(ours, theirs), f"seed {seed}"
