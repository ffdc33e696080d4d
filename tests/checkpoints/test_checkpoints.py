"""Checkpoints on disk: atomic, tagged on demand, and read as data."""

import pytest
import torch
from torch import nn

from maskrcnn_plus.checkpoints import Checkpointer, WeightsError, read_classes
from maskrcnn_plus.data import Classes


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


def test_class_names_are_written_into_every_checkpoint(tmp_path):
    checkpointer = Checkpointer(nn.Linear(2, 2), str(tmp_path), class_names=("cat", "dog"), category_ids=(3, "d"))
    checkpointer.save("a")
    checkpointer.save("b", only_model=True)
    for name in ("a.pth", "b.pth"):
        assert torch.load(tmp_path / name, weights_only=True)["class_names"] == ["cat", "dog"]
        assert read_classes(str(tmp_path / name)) == Classes(["cat", "dog"], [3, "d"])
    assert checkpointer.load(str(tmp_path / "a.pth"))["class_names"] == ["cat", "dog"]


def test_weights_of_other_origin_are_no_checkpoint_to_resume_from(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(WeightsError, match=r"bare\.pth .*train\.init_checkpoint"):
        Checkpointer(nn.Linear(2, 2), str(tmp_path)).load(str(tmp_path / "bare.pth"))
