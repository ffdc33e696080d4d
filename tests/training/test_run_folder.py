"""A run's output folder: held by one training, written in time, lost or full; and loading processes that are killed."""

import os
import shutil
import signal

import pytest
import tiny
import torch
from detectron2.utils.events import EventStorage, JSONWriter

from maskrcnn_plus.checkpoints import Checkpointer
from maskrcnn_plus.locking import lock_folder
from maskrcnn_plus.training.hooks import PeriodicCheckpoint
from maskrcnn_plus.training.writers import MetricsWriter


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_second_training_is_kept_out_and_changes_nothing(finished, stopped):
    (stopped / ".half.maskrcnn_plus.tmp").write_bytes(b"being written by the first run")
    before = files(stopped)
    with lock_folder("first", stopped / ".lock", ""), pytest.raises(BlockingIOError, match=f"{stopped}: another run"):
        tiny.execute(tiny.config(stopped, max_iter=9), resume=True)
    assert files(stopped) == before
    tiny.execute(tiny.config(stopped), resume=True)
    assert not (stopped / ".half.maskrcnn_plus.tmp").exists()


def test_an_evaluation_beside_a_training_leaves_its_files_alone(stopped):
    (stopped / ".half.maskrcnn_plus.tmp").write_bytes(b"being written by the training")
    before = files(stopped)
    cfg = tiny.config(stopped, init_checkpoint=str(stopped / "model_0000003.pth"), max_iter=9)
    with lock_folder("first", stopped / ".lock", ""):
        results = tiny.execute(cfg, eval_only=True)
    assert set(results) == {"a", "b"}
    after = files(stopped)
    assert {path: after[path] for path in before} == before
    assert {path.relative_to(stopped).parts[0] for path in set(after) - set(before)} == {"eval"}


def test_what_was_learned_is_saved_before_an_evaluation_that_fails(tmp_path, monkeypatch):
    def fail(self):
        raise ValueError("a.json: annotation 3 is damaged")

    cfg = tiny.config(tmp_path / "run", eval_period=3, checkpointer={"period": 100, "max_to_keep": 1})
    with monkeypatch.context() as patch:
        patch.setattr(tiny.Mean, "evaluate", fail)
        with pytest.raises(ValueError, match="annotation 3"):
            tiny.execute(cfg)
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_0000002.pth"
    tiny.execute(tiny.config(tmp_path / "run"), resume=True)
    tiny.execute(tiny.config(tmp_path / "whole"))
    final = [tiny.load(tmp_path / name / "model_final.pth") for name in ("run", "whole")]
    assert tiny.equal(*map(tiny.without_config, final))


@pytest.mark.parametrize("when", [1, 5])
def test_a_training_that_fails_in_its_last_iteration_is_not_evaluated(tmp_path, monkeypatch, when, capsys):
    def explode(self):
        for batch in (batch for batch in stream(self)):
            if batch[0]["index"] == when:
                raise OSError(5, "Input/output error", "image.png")
            yield batch

    stream = tiny.Stream.__iter__
    monkeypatch.setattr(tiny.Stream, "__iter__", explode)
    with pytest.raises(OSError, match=r"image\.png"):
        tiny.execute(tiny.config(tmp_path))
    assert not (tmp_path / "model_best.pth").exists()
    assert "Traceback" not in capsys.readouterr().out
    assert "Traceback" not in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("how", ["removed", "renamed", "a file"])
def test_a_vanished_folder_is_named(tmp_path, monkeypatch, how):
    output = tmp_path / "run"

    def vanish(self):
        for batch in (batch for batch in stream(self)):
            if batch[0]["index"] == 3:
                shutil.rmtree(output) if how == "removed" else output.rename(tmp_path / "other")
                if how == "a file":
                    output.touch()
            yield batch

    stream = tiny.Stream.__iter__
    monkeypatch.setattr(tiny.Stream, "__iter__", vanish)
    with pytest.raises(OSError, match=r"No such file|Not a directory") as caught:
        tiny.execute(tiny.config(output))
    assert caught.value.filename == str(output / "model_0000003.pth")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        tiny.execute(tiny.config(tmp_path / "file/run"))


def test_metrics_on_a_full_disk_are_named(tmp_path):
    hook = MetricsWriter([JSONWriter("/dev/full")], 1, str(tmp_path))
    with EventStorage(0) as storage:
        storage.put_scalar("loss", 1.0)
        hook.trainer = type("Trainer", (), {"iter": 0, "max_iter": 9})
        with pytest.raises(OSError, match="No space left on device") as caught:
            hook.after_step()
    assert caught.value.filename == str(tmp_path)


class _Dataset(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield [{"x": torch.zeros(3), "y": torch.zeros(()), "index": 0}] * 4
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_loading_process_is_told_in_a_line(tmp_path, monkeypatch):
    def iterate(self):
        return iter(torch.utils.data.DataLoader(_Dataset(), batch_size=None, num_workers=1))

    monkeypatch.setattr(tiny.Stream, "__iter__", iterate)
    with pytest.raises(ChildProcessError, match=r"loading process ended unexpectedly.*num_workers.*--resume") as caught:
        tiny.execute(tiny.config(tmp_path))
    assert len(str(caught.value).splitlines()) == 1


def test_other_processes_remove_no_checkpoints(tmp_path):
    """Another process than the main one is as far as it, or ahead, while the main one still writes."""
    model = torch.nn.Linear(1, 1)
    for name in ("model_0000001.pth", "model_0000003.pth"):
        (tmp_path / name).write_bytes(b"the main process's")
    other = PeriodicCheckpoint(Checkpointer(model, str(tmp_path), save_to_disk=False), period=2, max_to_keep=1)
    other.trainer = type("Trainer", (), {"iter": 1, "start_iter": 0, "max_iter": 9})
    other.before_train()
    for other.trainer.iter in (1, 3, 5):
        other.after_step()
    assert sorted(os.listdir(tmp_path)) == ["model_0000001.pth", "model_0000003.pth"]


def test_old_checkpoints_go_when_the_new_one_is_whole_and_marked(tmp_path, monkeypatch):
    model = torch.nn.Linear(1, 1)
    hook = PeriodicCheckpoint(Checkpointer(model, str(tmp_path)), period=1, max_to_keep=1)
    hook.trainer = type("Trainer", (), {"iter": 0, "start_iter": 0, "max_iter": 9})
    hook.before_train()
    hook.after_step()
    hook.trainer.iter = 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            hook.after_step()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"
    assert (tmp_path / "model_0000000.pth").exists()
    (tmp_path / "model_0000000.pth").unlink()  # by somebody who makes room
    hook.trainer.iter = 2
    hook.after_step()
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000002.pth"]
