"""In the tools OpenMP, as it tells itself when PyTorch loads it, lets threads wait briefly."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from tuning import SPINS

TOOLS = Path(__file__).resolve().parents[1] / "tools"
TRAIN = [sys.executable, TOOLS / "train_net.py", "--help"]
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="PyTorch has GNU's OpenMP on Linux")


@pytest.mark.parametrize(
    ("command", "environment", "spins"),
    [
        (TRAIN, {}, SPINS),
        (TRAIN, {"GOMP_SPINCOUNT": "777"}, 777),
        (TRAIN, {"OMP_WAIT_POLICY": "PASSIVE"}, 0),
        ([sys.executable, TOOLS / "predict.py", "--help"], {}, SPINS),
        ([sys.executable, TOOLS / "ablate.py", "--help"], {}, SPINS),
    ],
)
def test_threads_wait_briefly_unless_told_otherwise(command, environment, spins):
    inherited = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    result = subprocess.run(
        command, env={**inherited, **environment, "OMP_DISPLAY_ENV": "VERBOSE"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert f"GOMP_SPINCOUNT = '{spins}'" in result.stderr
