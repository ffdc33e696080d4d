"""Checkpoints: atomic on disk, data only when read, and honest about what was loaded."""

import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from maskrcnn_plus.checkpoints import Checkpointer, WeightsError, load_weights
from maskrcnn_plus.checkpoints.safe_pickle import UnsafePickleError, load_pickle


class _Runs:
    """Runs code when it is unpickled by Python's own unpickler."""

    def __reduce__(self):
        return (os.system, ("touch code_ran",))


def test_save_names_the_file_when_it_cannot_be_written(tmp_path, monkeypatch):
    checkpointer = Checkpointer(nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("first")
    monkeypatch.setattr(torch, "save", lambda *a: (_ for _ in ()).throw(RuntimeError("no space")))
    with pytest.raises(OSError, match=r"second\.pth.*no space"):
        checkpointer.save("second")
    assert checkpointer.get_checkpoint_file().endswith("first.pth")


def test_only_tagged_checkpoints_are_resumed_from(tmp_path):
    model = nn.Linear(2, 2)
    checkpointer = Checkpointer(model, str(tmp_path), optimizer=torch.optim.SGD(model.parameters(), 0.1))
    checkpointer.save("model_0000001")
    checkpointer.save("model_best", tag=False, only_model=True, model={"weight": torch.ones(1)})
    assert checkpointer.get_checkpoint_file().endswith("model_0000001.pth")
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert set(best) == {"model"}
    assert set(best["model"]) == {"weight"}


def test_pickled_arrays_are_read(tmp_path):
    data = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": [1, 2.5, "x", None, (True, b"y")]}
    data["c"] = OrderedDict(d=np.float64(3.5), e=np.zeros((0, 4), dtype=np.int64))
    for protocol in (2, 4, 5):
        loaded = load_pickle(io.BytesIO(pickle.dumps(data, protocol=protocol)), "x.pkl")
        assert np.array_equal(loaded["a"], data["a"])
        assert loaded["b"] == data["b"]
        assert loaded["c"]["d"] == 3.5
        assert loaded["c"]["e"].shape == (0, 4)


@pytest.mark.parametrize("content", [{"model": _Runs()}, print, [eval, "1"], np.array([_Runs()], dtype=object)])
def test_pickles_that_are_more_than_data_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafePickleError, match=r"evil\.pkl is refused: it refers to .*\."):
        load_pickle(io.BytesIO(pickle.dumps(content)), "evil.pkl")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a.pth", "a.pkl"])
@pytest.mark.parametrize("content", ["code", "truncated", "empty", "text", "list", "missing"])
def test_bad_weight_files_are_named(tmp_path, monkeypatch, name, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    save = torch.save if name == "a.pth" else lambda data, p: p.write_bytes(pickle.dumps(data))
    good = {"model": {"weight": np.ones((2, 2)) if name == "a.pkl" else torch.ones(2, 2)}, "__author__": "x"}
    if content == "code":
        save({"model": _Runs()}, path)
    elif content == "truncated":
        save(good, path)
        path.write_bytes(path.read_bytes()[:-20])
    elif content == "list":
        save([1, 2], path)
    elif content != "missing":
        path.write_bytes(b"" if content == "empty" else b"hello world\n")
    with pytest.raises(WeightsError, match=name):
        load_weights(nn.Linear(2, 2), str(path))
    assert not (tmp_path / "code_ran").exists()


def test_load_reports_what_it_did(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    weights = {
        "0.weight": torch.ones(3, 2),
        "0.bias": torch.zeros(3),
        "1.weight": torch.ones(9, 3),
        "extra": torch.ones(1),
    }
    torch.save(weights, tmp_path / "w.pth")
    report = load_weights(model, str(tmp_path / "w.pth"), strict=False)
    assert sorted(report.loaded) == ["0.bias", "0.weight"]
    assert report.other_shape == ["1.weight"]
    assert report.missing == ["1.bias"]
    assert report.unexpected == ["extra"]
    assert torch.equal(model[0].weight, torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"w\.pth does not fit.*1 of another shape \(1\.weight\)"):
        load_weights(model, str(tmp_path / "w.pth"))
    torch.save({"foreign": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="0 tensors loaded"):
        load_weights(model, str(tmp_path / "w.pth"), strict=False)


def test_averaged_weights_are_preferred(tmp_path):
    model = nn.Linear(2, 2)
    average = torch.optim.swa_utils.AveragedModel(model)
    with torch.no_grad():
        average.module.weight.fill_(7)
    torch.save({"model": model.state_dict(), "ema": average.state_dict()}, tmp_path / "w.pth")
    load_weights(model, str(tmp_path / "w.pth"))
    assert torch.equal(model.weight, torch.full((2, 2), 7.0))
