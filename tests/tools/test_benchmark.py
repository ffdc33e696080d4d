"""The table of tools/benchmark.py backbones."""

import re
import subprocess
import sys
from pathlib import Path

import timm

TOOL = Path(__file__).resolve().parents[2] / "tools" / "benchmark.py"


def millions(name, **options):
    network = timm.create_model(name, **options)
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.1f}"


def test_backbones_are_listed_with_their_parameters_and_times():
    names = ["mobilenetv3_small_050", "vit_tiny_patch16_224"]
    command = [sys.executable, TOOL, "backbones", "--names", ",".join(names), "--size", "64", "96", "--rounds", "1"]
    run = subprocess.run([*command, "--threads", "1"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "an image of 64 x 96, 1000 proposals" in run.stdout
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in run.stdout.splitlines() if "|" in line]
    assert [row[0] for row in rows[2:]] == names
    assert rows[2][1] == millions(names[0], features_only=True)
    for _, backbone, model, *times in rows[2:]:
        assert float(model) > float(backbone)
        backbone_ms, model_ms = (float(re.fullmatch(r"([\d.]+) \[\1-\1\]", time)[1]) for time in times)
        assert 0 < backbone_ms < model_ms
