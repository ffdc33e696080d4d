"""tools/serve.py up to the point where it listens; what it serves is tested in tests/apps/serve."""

import importlib.util
import socket
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
dataloader = dict(test=dict(mapper=L(InstanceMapper)(is_train=False, augmentations=[], percentiles=None)))
dataset = dict(thing_classes=["cell"], score_threshold=0.5)
"""


@pytest.fixture
def run(grey_values, tmp_path, monkeypatch):
    """Run the tool in tmp_path with the planted model; arguments as on the command line."""
    spec = importlib.util.spec_from_file_location("serve_tool", ROOT / "tools" / "serve.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "config.py").write_text(grey_values + CONFIG)
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "weights.pth")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("maskrcnn_plus.inference.predictor.Predictor.warm_up", lambda self: None)
    return lambda *arguments: module.main(["--config-file", "config.py", "--weights", "weights.pth", *arguments])


@pytest.fixture
def served(monkeypatch):
    """What would be served: predictor, settings and options of each call."""
    calls = []
    monkeypatch.setattr("maskrcnn_plus.apps.serve.app.serve", lambda *args, **options: calls.append((*args, options)))
    return calls


def test_settings_follow_the_arguments(run, served, monkeypatch, capsys):
    assert run() == 0
    predictor, settings, options = served.pop()
    assert (settings.only_local, settings.token, settings.batch_size, options["host"]) == (True, None, 1, "127.0.0.1")
    assert (predictor.score_threshold, predictor.class_names, options["port"]) == (0.5, ["cell"], 7860)
    limits = ("--max-mb", "1.5", "--max-pixels", "1000", "--max-waiting", "3", "--batch", "4", "--tile", "64")
    assert run("--host", "0.0.0.0", "--score-threshold", "0.2", *limits) == 0
    predictor, settings, options = served.pop()
    assert predictor.score_threshold == 0.2
    assert (settings.max_bytes, settings.max_pixels, settings.max_waiting) == (1572864, 1000, 3)
    assert (settings.batch_size, settings.tile, settings.only_local) == (4, 64, False)
    assert "everybody" in capsys.readouterr().err
    monkeypatch.setenv("MASKRCNN_PLUS_TOKEN", "of the environment")
    assert run("--host", "0.0.0.0") == 0
    assert served.pop()[1].token == "of the environment"
    assert run("--token", "given") == 0
    assert served.pop()[1].token == "given"
    assert "everybody" not in capsys.readouterr().err


def test_a_port_that_is_taken_is_told_in_one_line(run, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run("--port", str(port)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"serve: 127.0.0.1:{port} cannot be listened at")
    assert "--port" in error


def test_a_missing_package_is_told_with_the_extra(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "maskrcnn_plus.apps.serve.app", None)
    assert run() == 2
    assert "pip install 'maskrcnn_plus[web]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ("--max-mb", "0"),
        ("--max-mb", "inf"),
        ("--port", "99999"),
        ("--port", "-1"),
        ("--batch", "0"),
        ("--tile", "some"),
    ],
)
def test_arguments_out_of_range_are_refused(run, wrong):
    with pytest.raises(SystemExit):
        run(*wrong)
