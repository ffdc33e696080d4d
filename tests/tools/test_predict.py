"""tools/predict.py from the command line to the files, with a model whose objects are known beforehand.

The model finds an object for each grey value of its input image above 0: score = value / 255, mask = the bounding box
of that value. Pictures of rectangles thus have exact expectations, overlaps included.
"""

import importlib.util
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
import torch
from detectron2.config import LazyCall as L
from detectron2.structures import Boxes, Instances
from torch import nn

from maskrcnn_plus.data.mapper import InstanceMapper


class GreyValues(nn.Module):
    def __init__(self, interrupt_at=0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.interrupt_at = interrupt_at
        self.calls = 0

    def forward(self, batch):
        self.calls += 1
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        image = batch[0]["image"][0]
        values = [v for v in image.unique().tolist() if v > 0]
        instances = Instances(image.shape)
        masks = torch.zeros(len(values), *image.shape, dtype=torch.bool)
        boxes = torch.zeros(len(values), 4)
        for k, value in enumerate(values):
            y, x = torch.where(image == value)
            boxes[k] = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
            masks[k, y.min() : y.max() + 1, x.min() : x.max() + 1] = True
        instances.pred_masks, instances.pred_boxes = masks, Boxes(boxes)
        instances.scores = torch.tensor(values) / 255
        instances.pred_classes = torch.zeros(len(values), dtype=torch.int64)
        return [{"instances": instances}]


model = L(GreyValues)(interrupt_at=0)
dataloader = dict(test=dict(mapper=L(InstanceMapper)(is_train=False, augmentations=[])))
train = dict(device="cpu")
dataset = dict(thing_classes=["cell"])
"""


@pytest.fixture(scope="module")
def predict():
    spec = importlib.util.spec_from_file_location("predict_tool", ROOT / "tools" / "predict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(predict, tmp_path, monkeypatch):
    """Run the tool in tmp_path with the planted model; arguments as on the command line."""
    (tmp_path / "config.py").write_text(CONFIG)
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "weights.pth")
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        fixed = ["--config-file", "config.py", "--weights", "weights.pth", "--output", "out"]
        return predict.main([*fixed, *arguments])

    return run


def draw(path, *rectangles, height=40, width=60):
    """PNG with rectangles (value, y0, y1, x0, x1), later ones on top."""
    image = np.zeros((height, width), dtype=np.uint8)
    for value, y0, y1, x0, x1 in rectangles:
        image[y0:y1, x0:x1] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def results(folder):
    return json.loads((folder / "out/predictions.json").read_text())


def labels_of(folder, name):
    return cv2.imread(str(folder / f"out/labels/{name}.png"), cv2.IMREAD_UNCHANGED)


def test_labels_and_results_are_those_of_the_model(run, tmp_path, capsys):
    low, high = (140, 5, 20, 5, 30), (250, 10, 15, 20, 40)
    draw(tmp_path / "in/cells.png", low, high)
    draw(tmp_path / "in/none.png")
    assert run("--input", "in") == 0
    assert capsys.readouterr().out == "2 images, 2 objects, 0 failed; results in out\n"
    expected = np.zeros((40, 60), dtype=np.uint16)
    expected[5:20, 5:30] = 2  # the lower score, below
    expected[10:15, 20:40] = 1
    assert np.array_equal(labels_of(tmp_path, "cells"), expected)
    assert not labels_of(tmp_path, "none").any()
    best, other = results(tmp_path)
    assert (best["score"], other["score"]) == pytest.approx((250 / 255, 140 / 255))
    assert best["bbox"] == [20, 10, 20, 5]
    assert best["file_name"] == os.path.join("in", "cells.png")
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[5:20, 5:30] = 1  # whole, also where the other covers it
    assert np.array_equal(coco_mask.decode(other["segmentation"]), mask)
    assert cv2.imread(str(tmp_path / "out/overlays/cells.png")).shape == (40, 60, 3)


@pytest.mark.parametrize(("threshold", "count"), [(None, 2), ("0.2", 3), ("0.9", 1)])
def test_score_threshold(run, tmp_path, threshold, count):
    draw(tmp_path / "a.png", (100, 0, 5, 0, 5), (130, 10, 15, 0, 5), (240, 20, 25, 0, 5))
    assert run("--input", "a.png", *(["--score-threshold", threshold] if threshold else [])) == 0
    assert len(results(tmp_path)) == count


def test_bad_files_are_reported_and_the_rest_is_done(run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    draw(tmp_path / "in/1_good.png", (200, 0, 5, 0, 5))
    draw(tmp_path / "in/9_good.png", (200, 0, 5, 0, 5))
    (tmp_path / "in/2_empty.png").touch()
    cv2.imwrite(str(tmp_path / "in/3_cut.png"), rng.integers(0, 256, (60, 60), dtype=np.uint8))
    content = (tmp_path / "in/3_cut.png").read_bytes()
    (tmp_path / "in/3_cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "in/4_text.png").write_text("not an image")
    assert run("--input", "in", "--report") == 1
    output = capsys.readouterr()
    assert "2 images, 2 objects, 3 failed" in output.out
    lines = [line for line in output.err.splitlines() if line.startswith("predict: ")]
    assert [line.split(":")[1].strip() for line in lines] == [
        os.path.join("in", name) for name in ("2_empty.png", "3_cut.png", "4_text.png")
    ]
    assert {entry["file_name"] for entry in results(tmp_path)} == {os.path.join("in", f"{k}_good.png") for k in (1, 9)}
    page = (tmp_path / "out/report.html").read_text()
    assert "Not predicted: 3" in page
    assert page.count("3_cut.png") == 1


def test_same_names_are_kept_apart(run, tmp_path):
    draw(tmp_path / "a/cell.png", (200, 0, 5, 0, 5))
    draw(tmp_path / "a/cell.bmp", (200, 10, 15, 0, 5))
    draw(tmp_path / "b/cell.png", (200, 20, 25, 0, 5))
    assert run("--input", "a", "b") == 0
    tops = {path.stem: int(np.argwhere(labels_of(tmp_path, path.stem))[0, 0]) for path in tmp_path.glob("out/labels/*")}
    assert tops == {"cell": 10, "cell_png": 0, "b_cell": 20}


def test_odd_name_ends_up_escaped_in_a_self_contained_report(run, tmp_path):
    draw(tmp_path / "in/a<b>&.png", (200, 0, 5, 0, 5))
    assert run("--input", "in", "--report") == 0
    page = (tmp_path / "out/report.html").read_text()
    assert "a&lt;b&gt;&amp;.png" in page
    assert "a<b>" not in page
    assert "http" not in page
    assert labels_of(tmp_path, "a<b>&").max() == 1


def test_only_results_are_left(run, tmp_path):
    draw(tmp_path / "in/a.png", (200, 0, 5, 0, 5))
    for _ in range(2):  # the second time over the files of the first
        assert run("--input", "in", "--report") == 0
        found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
        assert found == ["labels/a.png", "overlays/a.png", "predictions.json", "report.html"]


def test_interruption_keeps_what_is_done(run, tmp_path, capsys):
    for k in range(4):
        draw(tmp_path / f"in/{k}.png", (200, 0, 5, 0, 5))
    assert run("--input", "in", "--report", "--opts", "model.interrupt_at=3") == 130
    assert [entry["file_name"] for entry in results(tmp_path)] == [os.path.join("in", f"{k}.png") for k in (0, 1)]
    assert "interrupted, 2 images left" in capsys.readouterr().err
    assert "interrupted after 2 images" in (tmp_path / "out/report.html").read_text()


def test_inputs_are_expanded_in_natural_order_without_repetition(predict, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("img10.png", "img2.PNG", "img1.jpg", "notes.txt", "sub/img3.tif", "out/labels/img1.png", "[x].webp"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()

    def listed(*inputs, recursive=False):
        return [os.path.relpath(path, "in") for path in predict.list_inputs(inputs, recursive, "in/out")]

    flat = ["[x].webp", "img1.jpg", "img2.PNG", "img10.png"]
    assert listed("in") == flat
    assert listed("in", recursive=True) == [*flat, os.path.join("sub", "img3.tif")]
    assert listed("in/img*.*") == flat[1:]
    assert listed("in/[x].webp") == flat[:1]
    assert listed("in/img2.PNG", "in") == ["img2.PNG", "[x].webp", "img1.jpg", "img10.png"]
    assert listed("in/notes.txt") == ["notes.txt"]  # named by itself, so tried
    assert predict.list_inputs(["demo://0/1/image.png"], False, "out") == ["demo://0/1/image.png"]


def test_what_cannot_start_ends_with_2_and_says_why(run, tmp_path, capsys):
    def message(*arguments):
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error

    draw(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert "missing_*.png" in message("--input", "a.png", "missing_*.png")
    assert "--input empty" in message("--input", "empty")
    assert "file" in message("--input", "a.png", "--output", "file")
    assert "nowhere.pth" in message("--input", "a.png", "--weights", "nowhere.pth")
    assert "nowhere" in message("--input", "a.png", "--config-file", "nowhere/config")
    assert "score_threshold is 7.0" in message("--input", "a.png", "--score-threshold", "7")
    assert "model.interupt_at" in message("--input", "a.png", "--opts", "model.interupt_at=3")
    assert "'[1'" in message("--input", "a.png", "--opts", "model.interrupt_at=[1")
    assert "`model` cannot be built" in message("--input", "a.png", "--opts", "model._target_=builtins.len")
    assert "no '='" in message("--input", "a.png", "--opts", "interrupt_at")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_output_folder_without_permission(run, tmp_path, capsys):
    draw(tmp_path / "a.png")
    (tmp_path / "out").mkdir(mode=0o500)
    assert run("--input", "a.png") == 2
    assert "out" in capsys.readouterr().err


def test_disk_full_ends_the_run_instead_of_blaming_the_images(run, tmp_path, capsys, monkeypatch):
    draw(tmp_path / "a.png")

    def no_space(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("maskrcnn_plus.inference.writers.write_atomically", no_space)
    assert run("--input", "a.png") == 2
    assert "No space left on device" in capsys.readouterr().err
