"""tools/predict.py killed at random moments: started again, every result is there once and none is broken."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
dataloader = dict(test=dict(mapper=L(InstanceMapper)(is_train=False, augmentations=[])))
"""

# Imports everything once. For each line "SECONDS SIGNAL ARGUMENTS" runs the tool in a new process, sends it the signal
# (0 for none) after that time, and answers with its status. A process that has ended keeps its number until then.
SERVER = f"""
import importlib.util, os, sys, time
sys.path.insert(0, {str(ROOT / "tools")!r})
spec = importlib.util.spec_from_file_location("predict_tool", {str(ROOT / "tools" / "predict.py")!r})
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
for line in sys.stdin:
    seconds, signal, *arguments = line.split()
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        os._exit(tool.main(arguments))
    time.sleep(float(seconds))
    os.kill(child, int(signal))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def run(grey_values, tmp_path):
    """Run the tool in tmp_path and send it a signal after some seconds; gives its exit code, minus the signal's."""
    (tmp_path / "config.py").write_text(grey_values + CONFIG)
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "weights.pth")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
        env=environment,
    ) as server:

        def run(output, seconds=0.0, kill=0):
            arguments = "--config-file config.py --weights weights.pth --input in film.avi --report"
            arguments += f" --format overlay labels coco csv geojson --output {output}"
            server.stdin.write(f"{seconds} {int(kill)} {arguments}\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        yield run
        server.stdin.close()


def contents(folder):
    """Results by name, without the records and the report, which has the date."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".records" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.name != "report.html"}


def test_killed_and_interrupted_at_random_moments(run, tmp_path):
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for k in range(8):
        image = np.repeat(np.repeat(rng.integers(120, 250, (6, 8), dtype=np.uint8), 10, axis=0), 10, axis=1)
        cv2.imwrite(str(tmp_path / f"in/{k}.png"), image)
    film = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for k in range(4):
        film.write(np.full((48, 64, 3), 150 + 20 * k, dtype=np.uint8))
    film.release()
    assert run("whole") == 0
    begun = time.monotonic()
    assert run("timed") == 0
    duration = time.monotonic() - begun
    expected = contents(tmp_path / "whole")
    assert len(expected) == 12 * 5 + 2

    random.seed(0)
    partial = 0
    for trial in range(2):
        output = tmp_path / f"out{trial}"
        for kill in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
            code = run(output.name, random.uniform(0, duration), kill)
            # An interrupt may also meet the tool where it begins or ends.
            assert code in ((0, -kill) if kill == signal.SIGKILL else (0, 1, 130, -kill))
            found = {name: content for name, content in contents(output).items() if not name.endswith(".tmp")}
            merged = {"predictions.json", "predictions.csv"}  # of an interrupted run they have what is done
            assert all(found[name] == expected[name] for name in found if name not in merged)
            assert json.loads(found.get("predictions.json", b"[]")) is not None
            partial += 0 < len(found) < len(expected)
        assert run(output.name) == 0
        assert contents(output) == expected
        records = list((output / ".records/images").rglob("*"))
        assert sum(path.suffix == ".json" for path in records) == 12
        assert not any(path.suffix == ".tmp" for path in records)
    assert partial > 0  # the moments were not all too early or too late
