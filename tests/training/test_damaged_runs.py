"""--resume from damaged folders: refused by name, with the way that is left."""

import os

import pytest
import torch
from tiny import edit, entries, equal, load, resume, without_config

from maskrcnn_plus.checkpoints import WeightsError


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    place = data.index(load(path)["model"]["first.weight"].numpy().tobytes())
    data[place + 3] ^= 1
    path.write_bytes(data)


def half(tensors):
    for name in list(tensors)[::2]:
        del tensors[name]


def other_shape(content):
    content["model"]["last.weight"] = torch.zeros(3, 4)


def lose(*keys):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return lambda path: edit(path, change)


DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-700]), "truncated|damaged|cannot be read"),
    "bit": (flip_a_bit, "damaged"),
    "binary": (lambda path: path.write_bytes(bytes(range(256))), "no weights file"),
    "weights": (lambda path: edit(path, lambda c: [c.pop(k) for k in ("trainer", "ema", "config")]), "no trainer"),
    "trainer": (lose("trainer"), "no trainer"),
    "ema": (lose("ema"), "no ema"),
    "optimizer": (lose("trainer", "optimizer"), "optimizer"),
    "groups": (lose("trainer", "optimizer", "param_groups"), "param_groups"),
    "iteration": (lambda path: edit(path, lambda c: c["trainer"].update(iteration="4")), "iteration"),
    "half": (lambda path: edit(path, lambda c: half(c["model"])), r"of 9 tensors are missing \(first\.weight"),
    "half of ema": (lambda path: edit(path, lambda c: half(c["ema"])), "its ema is not.*are missing"),
    "half of moments": (lambda path: edit(path, lambda c: half(c["trainer"]["optimizer"]["state"])), "3 parameters"),
    "shape": (lambda path: edit(path, other_shape), r"last\.weight \[3, 4\] there, \[1, 4\] here"),
    "type": (lambda path: edit(path, lambda c: c["model"].update(c["model"]["first.bias"].half())), "x"),
    "surplus": (
        lambda path: edit(path, lambda c: c["model"].update(new=torch.ones(1))),
        r"1 are not in the model \(new",
    ),
}
DAMAGES["type"] = (
    lambda path: edit(path, lambda c: c["model"].update({"first.bias": c["model"]["first.bias"].half()})),
    r"first\.bias float16 \[4\] there, \[4\] here",
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_the_newest_whole_one_named(finished, stopped, damage):
    change, what = DAMAGES[damage]
    change(stopped / "model_0000003.pth")
    os.utime(stopped / "model_0000003.pth")
    with pytest.raises(WeightsError, match=what) as caught:
        resume(stopped)
    text = str(caught.value)
    assert str(stopped / "model_0000003.pth") in text
    assert f"{stopped / 'model_0000002.pth'} is whole" in text
    assert f"echo model_0000002.pth > {stopped}/last_checkpoint" in text
    assert not (stopped / "model_final.pth").exists()
    (stopped / "last_checkpoint").write_text("model_0000002.pth\n")
    resume(stopped)
    final = [without_config(load(output / "model_final.pth")) for output in (finished, stopped)]
    assert equal(*final)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x01", b"gone.pth", b"..", b"../run/model_0000003.pth", None])
def test_a_damaged_mark_is_refused_and_the_newest_checkpoint_named(stopped, content):
    mark = stopped / "last_checkpoint"
    mark.unlink() if content is None else mark.write_bytes(content)
    with pytest.raises(WeightsError, match=r"last_checkpoint, which names the checkpoint") as caught:
        resume(stopped)
    assert f"{stopped / 'model_0000003.pth'} is whole" in str(caught.value)
    for path in stopped.glob("model_0*.pth"):
        path.write_bytes(b"")
    mark.write_bytes(b"")
    with pytest.raises(WeightsError, match="start anew without --resume"):
        resume(stopped)


def test_damaged_metrics_lose_no_whole_line(finished, stopped):
    lines = (stopped / "metrics.json").read_bytes().splitlines(keepends=True)
    damaged = [b"\xff\xfe\n", b"[1]\n", b"5\n", b'{"iteration": "x"}\n', *lines, b'{"itera']
    (stopped / "metrics.json").write_bytes(b"".join(damaged))
    log = resume(stopped)
    assert "4 damaged lines are dropped, the first is line 1" in log
    assert entries(stopped) == entries(finished)
