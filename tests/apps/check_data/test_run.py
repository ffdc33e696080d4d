"""tools/check_data.py: its exit code, its page, and the data set that it repairs."""

import importlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from planted_faults import SIDE, DataSet, disc

from maskrcnn_plus.apps.check_data.diagnosis import diagnose
from maskrcnn_plus.data.formats import read


@pytest.fixture
def data(tmp_path):
    return DataSet(tmp_path / "data")


@pytest.fixture
def run(capsys):
    main = importlib.import_module("tools.check_data").main

    def call(*arguments):
        code = main([str(each) for each in arguments])
        return code, capsys.readouterr()

    return call


def plant(data):
    """One of each fault that can be repaired."""
    data.add([disc(SIDE + 60, 40, 8)], image=4)
    data.repeat(5, 2)
    data.content["train"]["annotations"][0]["bbox"] = [100, 100, 20, 20]
    Image.open(data.root / "val" / "val2.png").save(data.root / "train" / "train8.png")
    (data.root / "train" / "train3.png").write_bytes(b"no image")
    return data.write()


def test_clean_data(data, run, tmp_path):
    code, told = run(data.write(), "--report", tmp_path / "new" / "page.html")
    assert code == 0
    assert "Nothing stops a training." in told.out
    assert re.search(r"train +12 +0 +144", told.out)
    assert (tmp_path / "new" / "page.html").exists()


def test_crowds_are_no_objects_of_the_samples(data, run, tmp_path):
    for content in data.content.values():
        of_image = {each["image_id"]: each for each in content["annotations"]}  # one of the 12 of each
        for each in of_image.values():
            each["iscrowd"] = 1
    assert run(data.write(), "--report", tmp_path / "page.html")[0] == 0
    assert set(re.findall(r": (\d+) objects<", (tmp_path / "page.html").read_text())) == {"11"}


def test_the_page_is_whole_and_needs_nothing_else(data, run, tmp_path):
    data.content["train"]["categories"][0]["name"] = "<script>alert(1)</script>"
    data.content["val"]["categories"][0]["name"] = "<script>alert(1)</script>"
    data.add([disc(80, 80, 45)], image=2)
    code, _ = run(plant(data), "--report", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()

    class Page(HTMLParser):
        pictures, words, loaded = 0, "", []

        def handle_starttag(self, tag, attrs):
            attrs = dict(attrs)
            Page.pictures += tag == "img"
            Page.loaded += [attrs[key] for key in ("src", "href") if key in attrs]

        def handle_data(self, text):
            Page.words += text

    Page().feed(text)
    assert code == 1
    assert "<script" not in text
    assert "<script>alert(1)</script>" in Page.words
    assert all(source.startswith("data:image/jpeg;base64,") for source in Page.loaded)
    assert Page.pictures >= 7
    for said in ("train3.png", "outside of the image", "annotated twice", "show nearly the same", "times the median"):
        assert said in Page.words


def test_repaired_data_are_clean(data, run, tmp_path):
    path = plant(data)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    code, told = run(path, "--fix", tmp_path / "clean")
    assert code == 1
    lines = told.out.splitlines()
    assert sum(line.startswith("left out:") for line in lines) == 4
    for said in ("train3.png", "train4.png, annotation 12", "train1.png, annotation 12", "train8.png"):
        assert any(line.startswith("left out:") and said in line for line in lines)
    assert any(line.startswith("written in the usual form:") and "train1.png" in line for line in lines)
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    found = diagnose(tmp_path / "clean")
    assert found.findings == found.suspicious == []
    assert {split: len(records) for split, records in found.splits.items()} == {"train": 10, "val": 6}
    assert found.statistics[""].num_objects == 16 * 12


def test_label_images_are_repaired_to_coco(tmp_path, run):
    labels = np.zeros((60, 80), dtype=np.uint16)
    labels[5:20, 5:20], labels[30:50, 40:70] = 1, 7
    for folder, pixels in (("images", (labels > 0).astype(np.uint8) * 200), ("labels", labels)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for name in "ab":
            Image.fromarray(pixels).save(tmp_path / "data" / folder / f"{name}.png")
    code, _ = run(tmp_path / "data", "--fix", tmp_path / "clean")
    assert code == 0
    assert diagnose(tmp_path / "clean").statistics[""].areas.tolist() == [225, 600] * 2


@pytest.mark.parametrize("case", ["nothing", "missing", "format", "inside", "full", "val", "objects"])
def test_errors_are_a_line(data, run, tmp_path, case):
    if case == "objects":
        for content in data.content.values():
            content["annotations"] = []
    path = data.write()
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    arguments = {
        "nothing": [tmp_path / "empty"],
        "missing": [tmp_path / "no"],
        "format": [path, "--format", "cocoo"],
        "inside": [path, "--fix", path / "clean"],
        "full": [path, "--fix", tmp_path / "full"],
        "val": [path, "--val", path / "val"],
        "objects": [path, "--fix", tmp_path / "clean"],
    }[case]
    said = {
        "nothing": "Looked for",
        "missing": "does not exist",
        "format": "'coco'",
        "inside": "stays as it is",
        "full": "not empty",
        "val": "Leave out --val",
        "objects": "no object is left",
    }[case]
    code, told = run(*arguments)
    assert code == 1
    assert said in told.err
    assert "Traceback" not in told.err
    assert not (path / "clean").exists()
    assert not (tmp_path / "clean").exists()


def test_images_of_no_split_stay_in_what_is_repaired(run, tmp_path):
    """They are taken for training, beside those of the train folder."""
    for number, split in enumerate(("train", "extra", "val")):
        for index in range(2):
            folder = tmp_path / "data" / split
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng([number, index]).integers(0, 255, (40, 60), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{split}{index}.png")
            (folder / f"{split}{index}.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5")
    (tmp_path / "data" / "classes.txt").write_text("cell")
    code, _ = run(tmp_path / "data", "--fix", tmp_path / "clean")
    assert code == 0
    found = {split: len(records) for split, records in read(tmp_path / "clean").splits.items()}
    assert found == {"train": 4, "val": 2}
