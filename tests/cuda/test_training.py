"""A training on a GPU that is stopped and resumed goes on as the uninterrupted one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def train(output, *options):
    settings = [f"train.output_dir={output}", "train.max_iter=6", "train.checkpointer.period=3", "train.log_period=1"]
    settings += ["train.eval_period=0", "dataset.num_train=8", "dataset.num_val=2", "train.device=cuda"]
    command = [sys.executable, "-W", "ignore", ROOT / "tools/train_net.py", "--config-file", "demo/mask_rcnn_lite0_fpn"]
    result = subprocess.run([*command, *settings, *options], capture_output=True, text=True, cwd=ROOT, timeout=400)
    assert result.returncode == 0, result.stderr[-3000:]
    entries = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return {entry["iteration"]: entry["total_loss"] for entry in entries if "total_loss" in entry}


@pytest.mark.parametrize("amp", [(), ("train.amp.enabled=true", "train.amp.dtype=float16")], ids=["float32", "float16"])
def test_a_resumed_run_goes_on_as_an_uninterrupted_one(tmp_path, amp):
    """The same data, random numbers and state; convolutions on a GPU add up in an order of their own."""
    finished = train(tmp_path / "finished", *amp)
    shutil.copytree(tmp_path / "finished", tmp_path / "stopped")
    (tmp_path / "stopped" / "model_final.pth").unlink()
    (tmp_path / "stopped" / "model_0000005.pth").unlink(missing_ok=True)
    (tmp_path / "stopped" / "last_checkpoint").write_text("model_0000002.pth")
    resumed = train(tmp_path / "stopped", "--resume", *amp)
    assert sorted(finished) == list(range(6))
    for iteration in (3, 4, 5):
        assert resumed[iteration] == pytest.approx(finished[iteration], rel=1e-2)
    if amp:
        scales = [
            torch.load(tmp_path / run / "model_final.pth", weights_only=True)["trainer"]["grad_scaler"]["scale"]
            for run in ("finished", "stopped")
        ]
        assert scales[0] == scales[1]
