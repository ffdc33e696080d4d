"""A run in shards, in processes and in batches gives what one run gives; what is not whole is refused by name."""

import fcntl
import importlib
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import cluster_images
import cv2
import fork_server  # noqa: F401 - worker processes start at once
import numpy as np
import pytest
import torch

from maskrcnn_plus.apps.predict_files import workers
from maskrcnn_plus.apps.predict_files.records import Shard

CONFIG = cluster_images.CONFIG.replace("score_threshold=0.25", "score_threshold=0.5")


@pytest.fixture(scope="module")
def tool():
    return importlib.import_module("predict")


def draw(path, values, size=(60, 60)):
    image = np.zeros(size, dtype=np.uint8)
    for k, value in enumerate(values):
        image[3 * k : 3 * k + 2, 5:25] = value
    cv2.imwrite(str(path), image)


@pytest.fixture
def run(tool, tmp_path, monkeypatch):
    """Run the tool on 7 images, of which one is broken and two are of another size; arguments beside those."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(CONFIG)
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "weights.pth")
    (tmp_path / "in").mkdir()
    for k in range(6):
        draw(tmp_path / f"in/{k}.png", range(140, 150 + k), size=(80, 60) if k in (1, 4) else (60, 60))
    (tmp_path / "in/broken.png").write_text("no image")
    names = ["in/5.png", "in/broken.png", "in/3.png", "in/1.png", "", "in/0.png", "in/2.png", "in/4.png"]
    (tmp_path / "files.txt").write_text("\n".join(names))

    def run(output, *arguments, inputs=("@files.txt",)):
        fixed = ["--config-file", "config.py", "--weights", "weights.pth", "--input", *inputs, "--output", output]
        return tool.main([*fixed, "--format", "labels", "coco", "csv", "counts", "--report", *arguments])

    return run


def contents(folder):
    """Results by name; of the report without the date, and of CSV and JSON with the folder of the run."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file() and ".records" not in path.parts]
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    if "report.html" in found:
        found["report.html"] = b"\n".join(line for line in found["report.html"].split(b"\n") if b"Date" not in line)
    return found


def test_shards_joined_are_one_run_object_by_object(run, tool, tmp_path, capsys):
    assert run("whole") == 1
    for k in (3, 1, 2):
        assert run("out", "--shard", f"{k}/3") == int(k == 2)  # the broken file is the second of the list
        assert not (tmp_path / "out/predictions.json").exists()
    capsys.readouterr()
    assert tool.main(["--merge", "--output", "out"]) == 1
    assert "6 images (6 of them by an earlier run), 75 objects, 1 failed" in capsys.readouterr().out
    assert contents("out") == contents("whole")
    entries = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [entry["file_name"] for entry in entries[::15]][:2] == ["in/5.png", "in/3.png"]
    assert len(entries) == sum(10 + k for k in range(6))
    assert run("out", "--shard", "2/3") == 1  # once more: nothing is predicted again, and it can be joined again
    assert "(1 of them by an earlier run)" in capsys.readouterr().out
    assert tool.main(["--merge", "--output", "out"]) == 1


def test_what_cannot_be_joined_is_named(run, tool, tmp_path, capsys):
    def refusal():
        capsys.readouterr()
        assert tool.main(["--merge", "--output", "out"]) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error

    assert "has no shards" in refusal()
    run("out", "--shard", "1/3")
    assert "not finished: 2/3, 3/3" in refusal()
    run("out", "--shard", "2/3")
    run("out", "--shard", "3/3", inputs=["@files.txt", "in"])
    assert tool.main(["--merge", "--output", "out"]) == 1  # the same files, named twice
    (tmp_path / "in/new.png").write_bytes((tmp_path / "in/0.png").read_bytes())
    run("out", "--shard", "3/3", inputs=["@files.txt", "in"])
    assert "the shards 3/3 were run with other inputs than 1/3" in refusal()
    run("out", "--shard", "3/3")
    run("out", "--shard", "2/2")
    assert "different divisions, so that images are there twice: 2/2, 1/3, 2/3, 3/3" in refusal()
    (tmp_path / "out/.records/shards/2-of-2.json").unlink()
    shutil.copy(tmp_path / "out/.records/shards/1-of-3.json", tmp_path / "out/.records/shards/copy.json")
    assert "several records of the shards 1/3" in refusal()
    (tmp_path / "out/.records/shards/copy.json").unlink()
    (tmp_path / "out/labels/5.png").unlink()
    assert "results of 5 are not there: run --shard 1/3 again" in refusal()
    with open(tmp_path / "out/.records/lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as a shard that is running has it
        assert "another run is writing to this folder" in refusal()
    (tmp_path / "out/.records/shards/2-of-3.json").write_text("{}")
    assert "2-of-3.json is damaged" in refusal()
    (tmp_path / "out/.records/settings.json").write_text('{"a":')
    assert "settings.json is damaged" in refusal()


def test_shards_share_the_folder_with_each_other_alone(run, tmp_path, capsys):
    run("out", "--shard", "1/2")
    with open(tmp_path / "out/.records/lock", "a+") as lock, open(tmp_path / "out/.records/shards/1-of-2.lock") as own:
        fcntl.flock(lock, fcntl.LOCK_SH)
        fcntl.flock(own, fcntl.LOCK_EX)
        assert run("out", "--shard", "2/2") == 1
        assert run("out") == 2
        assert run("out", "--shard", "1/2") == 2
    assert "shard 1/2: another run is writing" in capsys.readouterr().err
    assert run("out", "--shard", "1/2", "--score-threshold", "0.6") == 2
    assert "results of other settings" in capsys.readouterr().err


class Killed(BaseException):
    """Nothing catches it."""


@pytest.mark.parametrize("end", [KeyboardInterrupt, Killed])
def test_a_shard_that_was_stopped_goes_on_and_is_not_joined_before(run, tool, tmp_path, capsys, monkeypatch, end):
    module = "maskrcnn_plus.apps.predict_files.prediction_loop.write_results"
    from maskrcnn_plus.results import write_results

    calls = []

    def interrupted(*arguments, **options):
        calls.append(arguments[1])
        if len(calls) == 2:
            raise end
        return write_results(*arguments, **options)

    run("whole")
    monkeypatch.setattr(module, interrupted)
    if end is Killed:
        with pytest.raises(Killed):
            run("out", "--shard", "1/2")
    else:
        assert run("out", "--shard", "1/2") == 130
    run("out", "--shard", "2/2")
    assert tool.main(["--merge", "--output", "out"]) == 2
    unfinished = "1/2. Run" if end is Killed else "1/2 (interrupted, 3 files left)"
    assert f"not finished: {unfinished}" in capsys.readouterr().err
    assert run("out", "--shard", "1/2") == 0
    assert calls.count("5") == 1
    tool.main(["--merge", "--output", "out"])
    assert contents("out") == contents("whole")


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "a/b", "1/0", "-1/4"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="it must be K/N"):
        Shard.parse(text)


def test_a_shard_is_read_back_from_its_text_and_from_its_files():
    assert Shard.parse("3/64") == Shard(3, 64)
    assert Shard.parse(str(Shard(3, 64))) == Shard.parse(Shard(3, 64).stem) == Shard(3, 64)


def test_batches_give_the_same_and_a_bad_image_takes_none_with_it(run, tmp_path):
    run("whole")
    (tmp_path / "batches.txt").touch()
    assert run("out", "--batch", "3") == 1
    sizes = [int(line) for line in (tmp_path / "batches.txt").read_text().split()]
    assert max(sizes) > 1
    assert sum(sizes) == 6
    assert contents("out") == contents("whole")


def test_worker_processes_give_the_same(run, tmp_path, capsys):
    run("whole")
    said = capsys.readouterr()
    assert run("out", "--workers", "2", "--batch", "2") == 1
    assert capsys.readouterr().out.replace("out", "whole") == said.out
    assert contents("out") == contents("whole")
    assert run("out", "--workers", "2") == 1
    assert "(6 of them by an earlier run)" in capsys.readouterr().out
    # A killed process is told, and what is done stays.
    draw(tmp_path / "in/deadly.png", [66])
    assert run("out", "--workers", "1", inputs=["in/deadly.png", "in/0.png"]) == 2
    assert "A worker process ended unexpectedly" in capsys.readouterr().err
    assert not multiprocessing.active_children()


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    assert [workers.share_of_cores(n) for n in (1, 4, 5, 32)] == [16, 4, 3, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert workers.share_of_cores(4) == 2


def test_a_list_names_what_is_missing_and_goes_on(run, tmp_path, capsys):
    (tmp_path / "files.txt").write_text("in/0.png\nin/gone.png\n")
    assert run("out") == 1
    assert "in/gone.png" in capsys.readouterr().err
    assert run("out", inputs=["@nowhere.txt"]) == 2
    assert "the list nowhere.txt cannot be read" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n")
    assert run("out", inputs=["@empty.txt"]) == 2
    assert "empty.txt is empty" in capsys.readouterr().err
