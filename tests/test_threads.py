"""In the tools OpenMP, as it tells itself when PyTorch loads it, lets threads wait briefly."""

import ast
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from tuning import SPINS

TOOLS = Path(__file__).resolve().parents[1] / "tools"
TUNED = [path.stem for path in sorted(TOOLS.glob("*.py")) if "shorten_thread_waits()  #" in path.read_text()]
TRAIN = [sys.executable, TOOLS / "train_net.py", "--help"]
SHORT = [sys.executable, "-c", "import tuning; tuning.shorten_thread_waits(); import torch"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="PyTorch has GNU's OpenMP on Linux")
@pytest.mark.parametrize(
    ("command", "environment", "spins"),
    [
        (TRAIN, {}, SPINS),
        (SHORT, {"GOMP_SPINCOUNT": "777"}, 777),
        (SHORT, {"OMP_WAIT_POLICY": "PASSIVE"}, 0),
    ],
)
def test_threads_wait_briefly_unless_told_otherwise(command, environment, spins):
    inherited = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    inherited["PYTHONPATH"] = os.pathsep.join([str(TOOLS), inherited.get("PYTHONPATH", "")])
    result = subprocess.run(
        command, env={**inherited, **environment, "OMP_DISPLAY_ENV": "VERBOSE"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert f"GOMP_SPINCOUNT = '{spins}'" in result.stderr


@pytest.mark.parametrize("tool", TUNED)
def test_a_tool_says_so_before_it_loads_anything_that_may_load_pytorch(tool):
    for statement in ast.parse((TOOLS / f"{tool}.py").read_text()).body:
        if isinstance(statement, ast.Expr) and ast.unparse(statement) == "shorten_thread_waits()":
            return
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names = [statement.module] if isinstance(statement, ast.ImportFrom) else [n.name for n in statement.names]
            assert all(n.partition(".")[0] in {*sys.stdlib_module_names, "tuning"} for n in names), names
    raise AssertionError("shorten_thread_waits() is not called")


def test_what_predicts_and_trains_does():
    assert {"train_net", "finetune", "predict", "predict_cluster", "evaluate", "serve", "ablate"} <= set(TUNED)
