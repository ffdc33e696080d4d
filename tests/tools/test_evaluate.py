"""Weights on annotated images of a folder, with a model that finds an object for each grey value."""

import importlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn_plus.apps.evaluate import evaluate_records, read_evaluation_data, write_report
from maskrcnn_plus.config import get_config
from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.learned_images import image_keys
from maskrcnn_plus.inference.predictor import Predictor

CONFIG = """
dataloader = dict(test=dict(mapper=L(InstanceMapper)(is_train=False, augmentations=[], percentiles=None)))
dataset = dict(thing_classes=["cell"], score_threshold=0.5)
"""
BOXES = {"a": [(240, 5, 5, 25, 25), (200, 30, 5, 55, 20)], "b": [(230, 5, 5, 25, 25)], "c": []}


class Page(HTMLParser):
    """Fails where tags are not closed in turn."""

    VOID = ("meta", "img", "line", "circle", "rect", "polyline", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.text = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def folder(tmp_path):
    """COCO of two splits; the objects are rectangles, in grey values of which one is of another class."""
    for split, names in (("train", ["a"]), ("valid", ["a", "b", "c"])):
        place, images, annotations = tmp_path / "data" / split, [], []
        place.mkdir(parents=True)
        for number, name in enumerate(names, start=1):
            pixels = np.zeros((40, 60), np.uint8)
            images.append({"id": number, "file_name": f"{name}.png", "height": 40, "width": 60})
            for value, x0, y0, x1, y1 in BOXES[name]:
                pixels[y0:y1, x0:x1] = value
                box = [x0, y0, x1 - x0, y1 - y0]
                polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
                common = {"image_id": number, "iscrowd": 0, "area": box[2] * box[3], "bbox": box}
                annotations.append({"id": len(annotations) + 1, "category_id": 1, "segmentation": [polygon], **common})
            Image.fromarray(pixels).save(place / f"{name}.png")
        categories = [{"id": 1, "name": "Cell"}, {"id": 2, "name": "other"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (place / "_annotations.coco.json").write_text(json.dumps(content))
    return tmp_path / "data"


@pytest.fixture
def predictor(grey_values, tmp_path):
    (tmp_path / "config.py").write_text(grey_values + CONFIG)
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "weights.pth")
    return Predictor(get_config(str(tmp_path / "config.py")), str(tmp_path / "weights.pth"), score_threshold=0.0)


def test_a_perfect_model_on_the_validation_split(folder, predictor):
    data = read_evaluation_data(folder)
    assert (data.split, len(data.records)) == ("val", 3)
    diagnosis = evaluate_records(predictor, data, progress=False)
    assert diagnosis.class_names == ["cell"]  # matched in any case
    assert diagnosis.figures["segm"]["AP"] == pytest.approx(100)
    assert diagnosis.figures["boundary"]["AP"] == pytest.approx(100)
    assert diagnosis.threshold == 0.78
    assert len(read_evaluation_data(folder, "all").records) == 4
    with pytest.raises(DataError, match=r"no images of the split 'test'\. It has: train, val"):
        read_evaluation_data(folder, "test")


def test_images_that_the_weights_learned_from_are_left_out_or_said(folder, tmp_path):
    def notes_of(learned, *args):
        keys = image_keys({"file_name": str(folder / "valid" / f"{name}.png")} for name in learned)
        torch.save({"description": {"data": {"train": {"keys": keys}}}}, tmp_path / "known.pth")
        data = read_evaluation_data(*args, weights=str(tmp_path / "known.pth"))
        return [record["file_name"][-5:-4] for record in data.records], data.notes[-1:]

    whole = folder / "valid" / "_annotations.coco.json"
    kept, notes = notes_of("ac", whole)
    assert kept == ["b"]
    assert "learned from 2 of 3 images, which are left out; --split all" in notes[0]
    too_good = "The weights have learned from 2 of 3 images: the figures are too good for new ones."
    assert notes_of("ac", whole, "all") == (["a", "b", "c"], [too_good])
    assert notes_of("abc", whole)[0] == notes_of("ac", folder)[0] == ["a", "b", "c"]
    assert notes_of("ac", folder)[1] == [too_good]
    assert read_evaluation_data(whole, weights=str(tmp_path / "config.py")).notes == []


def test_classes_without_a_counterpart_are_said(folder, predictor):
    path = folder / "valid" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["category_id"] = 2
    path.write_text(json.dumps(content))
    data = read_evaluation_data(folder, "val")
    diagnosis = evaluate_records(predictor, data, progress=False)
    assert diagnosis.curve.objects == 2
    assert any("does not know these classes, whose objects are left out: other." in note for note in data.notes)
    content["categories"] = [{"id": 1, "name": "leaf"}, {"id": 2, "name": "stem"}]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"No class of the data \(leaf, stem\) is one of the model \(cell\)"):
        evaluate_records(predictor, read_evaluation_data(folder, "val"), progress=False)
    content["annotations"] = content["annotations"][:1]
    path.write_text(json.dumps(content))
    data = read_evaluation_data(folder, "val")
    assert evaluate_records(predictor, data, progress=False).class_names == ["cell"]
    assert any("The only class of the data, leaf, was taken for" in note for note in data.notes)


def test_categories_that_differ_in_case_are_one_class(folder, predictor):
    path = folder / "valid" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    before = evaluate_records(predictor, read_evaluation_data(folder, "val"), progress=False)
    content["annotations"][1]["category_id"] = 2
    content["categories"] = [{"id": 1, "name": "cell"}, {"id": 2, "name": "CELL"}]
    path.write_text(json.dumps(content))
    diagnosis = evaluate_records(predictor, read_evaluation_data(folder, "val"), progress=False)
    assert diagnosis.curve.objects == before.curve.objects == 3
    assert diagnosis.figures["segm"]["AP"] == pytest.approx(100)


def test_an_image_that_is_cut_short_is_left_out_and_named(folder, predictor):
    path = folder / "valid" / "b.png"
    path.write_bytes(path.read_bytes()[:-30])  # its header is whole
    with pytest.raises(ValueError, match=r"b\.png"):
        evaluate_records(predictor, read_evaluation_data(folder, "val"), progress=False)
    data = read_evaluation_data(folder, "val", on_error="skip")
    assert len(evaluate_records(predictor, data, on_error="skip", progress=False).images) == 2
    assert any(note.startswith(f"Left out: {path}") for note in data.notes)
    for name in ("a", "c"):
        (folder / "valid" / f"{name}.png").write_bytes(path.read_bytes())
    data = read_evaluation_data(folder, "val", on_error="skip")
    with pytest.raises(DataError, match=r"No image of 3 can be used\. Left out: .*c\.png"):
        evaluate_records(predictor, data, on_error="skip", progress=False)


def test_the_page_holds_everything_and_nothing_from_elsewhere(folder, predictor, tmp_path):
    data = read_evaluation_data(folder)
    diagnosis = evaluate_records(predictor, data, progress=False)
    lines = [{"iteration": k, "total_loss": 2.0 - k, "val_loss": 1.0, "segm/AP": 5.0} for k in range(3)]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    weights = str(tmp_path / "weights.pth")
    write_report(tmp_path / "r.html", diagnosis, predictor, weights=weights, data="<my data>", notes=["A & B."])
    text = (tmp_path / "r.html").read_text()
    shown = " ".join(Page(text).text)
    for words in (
        "mask AP", "boundary AP", "Average precision", "Precision by recall", "F1 by score threshold", "Calibration",
        "Confusion", "Kinds of errors", "background", "duplicate", "validation", "Average precision while training",
        "Best: ", "<my data>", "A & B.", "--score-threshold 0.78",
    ):  # fmt: skip
        assert words in shown, words
    assert "<my data>" not in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert text.count('src="data:image/jpeg') == 2 * 3  # each image once, annotated and found


def test_a_model_that_finds_nothing_and_images_without_objects(folder, predictor, tmp_path):
    for name in ("a", "b"):
        Image.fromarray(np.zeros((40, 60), np.uint8)).save(folder / "valid" / f"{name}.png")
    data = read_evaluation_data(folder)
    diagnosis = evaluate_records(predictor, data, progress=False)
    assert diagnosis.figures["segm"]["AP"] == 0
    data.records = data.records[-1:]
    empty = evaluate_records(predictor, data, progress=False)
    for each in (diagnosis, empty):
        write_report(tmp_path / "r.html", each, predictor, weights=str(tmp_path / "weights.pth"), data="d")
        Page((tmp_path / "r.html").read_text())


@pytest.fixture(scope="module")
def evaluate():
    return importlib.import_module("evaluate")


def test_the_command(evaluate, folder, predictor, tmp_path, capsys):
    weights, config = str(tmp_path / "weights.pth"), str(tmp_path / "config.py")
    fixed = ["--weights", weights, "--config-file", config, "--data", str(folder)]
    assert evaluate.main([*fixed, "--report"]) == 0
    printed = capsys.readouterr().out
    assert "3 images, 3 objects" in printed
    assert "AP 100.0" in printed
    assert (tmp_path / "report.html").is_file()
    assert evaluate.main([*fixed, "--report", str(tmp_path / "other.html"), "--split", "all"]) == 0
    assert (tmp_path / "other.html").is_file()


def test_what_cannot_be_evaluated_is_one_line(evaluate, folder, predictor, tmp_path, capsys):
    weights, config = str(tmp_path / "weights.pth"), str(tmp_path / "config.py")
    for arguments, words in (
        (["--data", str(folder), "--weights", weights], "does not say which config"),
        (["--data", str(tmp_path / "none"), "--weights", weights, "--config-file", config], "none does not exist"),
        (["--data", str(folder), "--weights", "no.pth"], "no.pth does not exist"),
        (["--data", str(folder), "--weights", weights, "--config-file", config, "--split", "x"], "no images of the"),
    ):
        assert evaluate.main(arguments) == 1
        error = capsys.readouterr().err
        assert words in error
        assert "Traceback" not in error
