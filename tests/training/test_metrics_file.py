"""metrics.json is JSON whatever the numbers are, and tools/plot_metrics.py draws what is there."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
from detectron2.utils.events import EventStorage, JSONWriter
from omegaconf import OmegaConf

from maskrcnn_plus.training.writers import build_writers

TOOL = Path(__file__).resolve().parents[2] / "tools" / "plot_metrics.py"


def _strict(line):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refuse)


@pytest.fixture
def metrics(tmp_path):
    """Lines of a metrics.json, written as a training does, of three iterations with numbers that JSON lacks."""
    file = build_writers(OmegaConf.create({"output_dir": str(tmp_path), "max_iter": 3}), 0)[1]
    reference = JSONWriter(str(tmp_path / "reference.json"))
    values = [(1.5, 20.0), (math.nan, math.inf), (0.5, -math.inf)]
    with EventStorage() as storage:
        for loss, norm in values:
            storage.put_scalars(total_loss=loss, grad_norm=norm, smoothing_hint=False)
            storage.put_scalar("time", loss if math.isfinite(loss) else 1.0)
            if storage.iter != 1:  # two iterations at once
                storage.put_scalar("segm/AP", math.nan if storage.iter else 10.0, smoothing_hint=False)
                file.write()
                reference.write()
            storage.step()
        file.write()
        reference.write()
    file.close()
    reference.close()
    return tmp_path / "metrics.json", tmp_path / "reference.json"


def test_it_is_what_detectron2_writes_with_null_for_what_json_lacks(metrics):
    ours, reference = ([*path.read_text().splitlines()] for path in metrics)
    expected = [{k: v if math.isfinite(v) else None for k, v in json.loads(line).items()} for line in reference]
    assert [_strict(line) for line in ours] == expected
    assert any(None in entry.values() for entry in expected)


@pytest.fixture
def plot():
    spec = importlib.util.spec_from_file_location("plot_metrics", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plot_leaves_out_what_is_no_number(metrics, plot, tmp_path, capsys):
    series = plot.read_series(metrics[0])
    assert series["segm/AP"] == ([0], [10.0])
    assert all(math.isfinite(value) for _, values in series.values() for value in values)
    old = tmp_path / "old.json"
    old.write_text('{"iteration": 0, "total_loss": NaN, "segm/AP": NaN}\n{"iteration": 1, "total_loss": 2.0}\n')
    assert plot.read_series(old) == {"iteration": ([0, 1], [0, 1]), "total_loss": ([1], [2.0]), "segm/AP": ([], [])}
    for path in (metrics[0], old):
        assert plot.main([str(path), "--output", str(tmp_path / "curve.png")]) == 0
        assert (tmp_path / "curve.png").stat().st_size > 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\nno json\n", "line 1"),
        ('{"iteration": 0, "a/b": 1}\n{"iter', "line 2"),
        ('{"iteration": 0, "a/b": 1}\n', "segm/AP not in"),
        (None, "No such file"),
    ],
)
def test_files_that_cannot_be_drawn_are_named_in_a_line(text, message, plot, tmp_path, capsys):
    path = tmp_path / "metrics.json"
    if text is not None:
        path.write_text(text)
    assert plot.main([str(path), "--output", str(tmp_path / "curve.png")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error
    assert len(error.splitlines()) == 1


def test_what_an_iteration_left_that_an_error_ended_is_dropped(tmp_path):
    entries = [
        {"iteration": 2, "total_loss": 1.0},
        {"iteration": 3, "eta_seconds": 4.0},
        {"iteration": 3, "a/mean": 1.0},
    ]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    build_writers(OmegaConf.create({"output_dir": str(tmp_path), "max_iter": 9}), 3)
    kept = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert kept == [entries[0], entries[2]]


def test_what_cannot_be_plotted_is_a_line(plot, tmp_path, capsys):
    (tmp_path / "empty.json").touch()
    (tmp_path / "picture.json").write_bytes(b"\x89PNG\r\n")
    for name, said in (("empty", "empty.json is empty"), ("picture", "line 1 is no line of a metrics.json")):
        assert plot.main([str(tmp_path / f"{name}.json"), "--output", str(tmp_path / "a.png")]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1
    for output in ("curve", "curve.foo"):
        with pytest.raises(SystemExit, match="2"):
            plot.main([str(tmp_path / "empty.json"), "--output", output])
        assert f"--output {output}: a name that ends with .png, .svg or .pdf is needed" in capsys.readouterr().err
