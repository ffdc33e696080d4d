"""The command lines take `maskrcnn_plus://nuclei` for what it is, and write it down as it was given."""

import json

import evaluate
import finetune
import predict
import pytest
from PIL import Image
from shipped_nuclei import small_config

from maskrcnn_plus.apps.finetune import run
from maskrcnn_plus.apps.finetune.timing import Timing
from maskrcnn_plus.build import build
from maskrcnn_plus.checkpoints import load_weights
from maskrcnn_plus.config import get_config
from maskrcnn_plus.data.synthetic_nuclei import render_nuclei
from maskrcnn_plus.overrides import apply_overrides

SOURCE = "maskrcnn_plus://nuclei"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set of rendered nuclei; the current folder is the one that it lies in."""
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for index in range(3):
        for kind, pixels in zip(("images", "labels"), render_nuclei("fluorescence", 0, index, 96, 96), strict=True):
            Image.fromarray(pixels).save(tmp_path / "data" / kind / f"{index}.png")
    splits = {"train": ["0", "1"], "val": ["2"]}
    (tmp_path / "data" / "splits.json").write_text(json.dumps(splits))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def texts_of(folder):
    """All text files below a folder, without the page's pictures."""
    files = [path for path in folder.rglob("*") if path.suffix in (".json", ".html", ".py", ".txt")]
    return {path.name: path.read_text() for path in files}


def test_predict_needs_nothing_else(folder, nuclei_zoo):
    arguments = ["--weights", SOURCE, "--input", "data/images/0.png", "--output", "out", "--report"]
    assert predict.main(arguments) == 0
    texts = texts_of(folder / "out")
    assert SOURCE in texts["report.html"]
    assert [name for name, text in texts.items() if str(nuclei_zoo) in text] == []


def test_evaluate_writes_its_page_here(folder, nuclei_zoo, capsys):
    assert evaluate.main(["--weights", SOURCE, "--data", "data", "--report"]) == 0
    assert "written to report.html" in capsys.readouterr().out
    page = (folder / "report.html").read_text()
    assert f"--weights {SOURCE}" in page
    assert str(nuclei_zoo) not in page
    assert sorted(path.name for path in folder.iterdir() if "maskrcnn" in path.name) == []


def test_finetune_starts_from_it_where_the_data_are_nuclei(folder, nuclei_zoo, monkeypatch, capsys):
    monkeypatch.setattr(run, "measure_speed", lambda cfg: Timing(0.5, 0.1, False))
    assert finetune.main(["--data", "data", "--output", "out", "--dry-run", "--classes", "nucleus"]) == 0
    assert f"Starts from {SOURCE}" in capsys.readouterr().out
    cfg = get_config("out/config.py")
    assert cfg.train.init_checkpoint == SOURCE
    assert cfg.model.backbone.bottom_up.name == "resnet18"
    assert str(nuclei_zoo) not in (folder / "out" / "config.py").read_text()


@pytest.mark.usefixtures("nuclei_zoo")
def test_a_training_of_any_config_can_start_from_it():
    cfg = small_config()
    apply_overrides(cfg, [f"train.init_checkpoint={SOURCE}"])
    report = load_weights(build(cfg, "model"), cfg.train.init_checkpoint, class_names=["nucleus"])
    assert report.source == SOURCE
    assert report.fraction == 1


@pytest.mark.usefixtures("nuclei_zoo")
def test_an_unknown_name_is_told_by_all_in_one_line(folder, capsys):
    wrong = "maskrcnn_plus://nucleus"
    for main, arguments in (
        (predict.main, ["--input", "data/images", "--output", "out"]),
        (evaluate.main, ["--data", "data"]),
        (finetune.main, ["--data", "data", "--output", "out"]),
    ):
        assert main(["--weights", wrong, *arguments]) in (1, 2)
        error = capsys.readouterr().err
        assert f"{wrong}: no such model comes with the package. Did you mean {SOURCE}?" in error
        assert "Traceback" not in error
