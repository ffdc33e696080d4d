"""Runs of tools/predict.py that cannot start or cannot go on: exit codes, and the line that says why."""

import importlib
import os

import pytest
import torch
from grey_values import draw, results


def test_what_cannot_start_ends_with_2_and_says_why(run, tmp_path, capsys):
    def message(*arguments):
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error

    draw(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    assert "missing_*.png" in message("--input", "a.png", "missing_*.png")
    assert "input empty" in message("--input", "empty")
    assert "nowhere.pth" in message("--input", "a.png", "--weights", "nowhere.pth")
    assert "nowhere" in message("--input", "a.png", "--config-file", "nowhere/config")
    assert "score_threshold is 7.0" in message("--input", "a.png", "--score-threshold", "7")
    assert "model.ignord" in message("--input", "a.png", "--opts", "model.ignord=3")
    assert "'[1'" in message("--input", "a.png", "--opts", "model.ignored=[1")
    assert "pixel_size is -1" in message("--input", "a.png", "--pixel-size", "-1")
    assert "tile_size is 7" in message("--input", "a.png", "--tile", "7")
    assert "`model` cannot be built" in message("--input", "a.png", "--opts", "model._target_=builtins.len")
    assert "no '='" in message("--input", "a.png", "--opts", "ignored")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tool", ["predict", "predict_cluster", "serve"])
def test_a_tile_that_is_no_number_ends_with_what_it_may_be(capsys, tool):
    arguments = ["--weights", "a.pth", "--tile", "large"] + ["--input", "a", "--output", "b"] * (tool != "serve")
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(tool).main(arguments)
    assert "argument --tile: invalid SIZE|auto|off value: 'large'" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_output_folder_without_permission(run, tmp_path, capsys):
    draw(tmp_path / "a.png")
    (tmp_path / "out").mkdir(mode=0o500)
    assert run("--input", "a.png") == 2
    assert "out" in capsys.readouterr().err


def test_disk_full_ends_the_run_instead_of_blaming_the_images(run, tmp_path, capsys, monkeypatch):
    draw(tmp_path / "a.png")

    def no_space(path, content, **options):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("maskrcnn_plus.results.write_atomically", no_space)
    assert run("--input", "a.png") == 2
    assert "No space left on device" in capsys.readouterr().err


def test_disk_full_of_kept_tiles_ends_the_run_too(run, tmp_path, capsys, monkeypatch):
    for name in ("a", "b"):
        draw(tmp_path / f"{name}.png", height=400, width=400)

    def no_space(kept, tile):
        raise OSError(28, "No space left on device", str(kept._path))

    monkeypatch.setattr("maskrcnn_plus.inference.kept_tiles.KeptTiles.add", no_space)
    assert run("--input", "a.png", "b.png", "--tile", "200") == 2
    assert capsys.readouterr().err == "predict: out/.records/tiles/a.jsonl: No space left on device\n"


def test_results_of_other_settings_are_refused(run, tmp_path, capsys):
    draw(tmp_path / "in/a.png", (130, 0, 5, 0, 5), (200, 10, 15, 0, 5))
    assert run("--input", "in") == 0
    assert run("--input", "in", "--score-threshold", "0.6") == 2
    assert "other settings: score_threshold (0.5 before, 0.6 now)" in capsys.readouterr().err
    assert run("--input", "in", "--opts", "model.ignored=1") == 2
    assert "other settings: model and weights" in capsys.readouterr().err
    assert run("--input", "in", "--opts", "dataloader.test.mapper.percentiles=[1,99]") == 2
    torch.save({"model": {"weight": torch.ones(1)}}, tmp_path / "weights.pth")
    assert run("--input", "in") == 2
    assert len(results(tmp_path)) == 2
    assert run("--input", "in", "--score-threshold", "0.6", "--overwrite") == 0
    assert len(results(tmp_path)) == 1


def test_none_could_be_predicted(run, tmp_path, capsys):
    (tmp_path / "a.png").write_text("text")
    assert run("--input", "a.png") == 2
    assert "0 images, 0 objects, 1 failed" in capsys.readouterr().out
    assert results(tmp_path) == []


def test_weights_that_do_not_know_their_config_need_one(predict, tmp_path, capsys):
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "weights.pth")
    arguments = ["--weights", str(tmp_path / "weights.pth"), "--input", "in", "--output", str(tmp_path / "out")]
    assert predict.main(arguments) == 2
    error = capsys.readouterr().err
    assert "does not say which config" in error
    assert "--config-file" in error
    assert "Traceback" not in error
