"""The table of tools/benchmark.py backbones."""

import re
import sys

import benchmark
import timm
from fork_server import ROOT, Script

TOOL = ROOT / "tools" / "benchmark.py"


def millions(name, **options):
    network = timm.create_model(name, **options)
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.1f}"


def test_backbones_are_listed_with_their_parameters_and_times():
    names = ["mobilenetv3_small_050", "vit_tiny_patch16_224"]
    run = Script(TOOL, "backbones", "--names", ",".join(names), "--size", 64, 96, "--rounds", 1, "--threads", 1)
    text = run.communicate()
    assert run.returncode == 0, text
    assert "an image of 64 x 96, 1000 proposals" in text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    assert [row[0] for row in rows[2:]] == names
    assert rows[2][1] == millions(names[0], features_only=True)
    for _, backbone, model, *times in rows[2:]:
        assert float(model) > float(backbone)
        backbone_ms, model_ms = (float(re.fullmatch(r"([\d.]+) \[\1-\1\]", time)[1]) for time in times)
        assert 0 < backbone_ms < model_ms


def test_a_benchmark_without_its_extra_names_it(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "keep_freed_memory", lambda: None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in [name for name in sys.modules if name.startswith(("benchmarks.cluster", "maskrcnn_plus.apps.cluster"))]:
        monkeypatch.delitem(sys.modules, name)
    assert benchmark.main(["cluster"]) == 2
    assert capsys.readouterr().err == "benchmark: pyarrow is missing: pip install 'maskrcnn_plus[cluster]'\n"
