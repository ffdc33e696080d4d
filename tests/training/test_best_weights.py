"""Which weights stay in model_best.pth when a run is resumed or extended."""

import json
import shutil

import pytest
import torch
from tiny import edit, entries, load, resume

from maskrcnn_plus.training.data import RunData


def set_best(output, value, iteration):
    record = {"metric": "a/mean", "value": value, "iteration": iteration}
    edit(output / "model_best.pth", lambda content: content.update(best=record, model={"mark": torch.ones(1)}))
    (output / "best.json").write_text(json.dumps(record))


def is_kept(output):
    return set(load(output / "model_best.pth")["model"]) == {"mark"}


@pytest.mark.parametrize("iteration", [3, 5, 6])
def test_better_weights_stay_wherever_they_were_found(finished, stopped, iteration):
    set_best(stopped, 100.0, iteration)  # after the checkpoint that the run resumes from, too
    resume(stopped)
    assert is_kept(stopped)


def test_an_extended_run_keeps_what_its_end_found(finished, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    set_best(output, 100.0, 6)
    (output / "log.txt").unlink()
    log = resume(output, max_iter=8)
    assert is_kept(output)
    assert json.loads((output / "best.json").read_text())["value"] == 100.0
    assert "train.max_iter 6 -> 8" in log
    assert entries(output)[: len(entries(finished))] == entries(finished)


def test_worse_weights_are_replaced(stopped):
    set_best(stopped, -100.0, 3)
    resume(stopped)
    assert not is_kept(stopped)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\x00", b'{"metric": 5}', b'{"metric": "a/mean", "value": "x"}'])
def test_a_damaged_record_is_named(stopped, content):
    set_best(stopped, 100.0, 3)
    (stopped / "best.json").write_bytes(content)
    assert f"{stopped}/best.json is missing or damaged, and written anew" in resume(stopped)
    assert is_kept(stopped)
    assert json.loads((stopped / "best.json").read_text())["value"] == 100.0


def test_a_damaged_record_without_another_is_refused(stopped):
    edit(stopped / "model_best.pth", lambda content: content.pop("best"))
    (stopped / "best.json").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"best\.json is missing or damaged.*model_best\.pth"):
        resume(stopped)


def test_a_damaged_file_is_named_and_written_anew(finished, stopped):
    (stopped / "model_best.pth").write_bytes(b"")
    assert f"{stopped}/model_best.pth is empty" in resume(stopped)
    assert load(stopped / "model_best.pth")["best"]["metric"] == "a/mean"


def test_checkpoints_say_what_they_are(finished, stopped):
    best = load(finished / "model_best.pth")
    about = best["description"]
    assert about["metrics"]["a/mean"] == best["best"]["value"]
    assert about["metrics"]["iteration"] == best["best"]["iteration"]
    assert about["config"]["train"]["max_iter"] == 6
    assert about["config"]["model"] == {
        "num_classes": "${dataset.num_classes}",
        "freeze_at": 0,
        "_target_": "tiny.Model",
    }
    assert about["unknown"] == ["tiny.Model"]
    assert load(finished / "model_final.pth")["description"]["config"] == about["config"]
    resume(stopped, max_iter=5)  # the last evaluation before the checkpoint that it resumes from was after iteration 1
    assert load(stopped / "model_final.pth")["description"]["metrics"]["iteration"] == 1


def test_the_best_on_other_images_is_not_compared_with(stopped, monkeypatch):
    """As where images were added, and others drawn for validation."""
    set_best(stopped, 100.0, 3)

    def grow(content):
        content["description"]["data"]["test"] = {"images": 2, "fingerprint": "a"}

    for path in stopped.glob("model_*.pth"):
        edit(path, grow)
    monkeypatch.setattr(RunData, "describe", lambda self: {"test": {"images": 3, "fingerprint": "b"}})
    log = resume(stopped)
    assert "The test data are not those that" in log
    assert "model_best.pth is the best on other validation data" in log
    assert not is_kept(stopped)
