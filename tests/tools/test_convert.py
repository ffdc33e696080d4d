"""tools/convert.py: what it writes is read back as the same masks; what it refuses is one line and exit code 1."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from annotation_folders import masks_of, rectangle, write_image
from PIL import Image

from maskrcnn_plus.data.formats import read
from maskrcnn_plus.data.formats.label_maps import LabelMapFolder

MASKS = [rectangle(6, 4, 30, 20), rectangle(36, 22, 50, 35)]
LINES = ["0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5", "0 0.6 0.55 0.8333333 0.55 0.8333333 0.875 0.6 0.875"]


@pytest.fixture
def folder(tmp_path):
    for index in range(5):
        write_image(tmp_path / "data" / f"{index}.png")
        (tmp_path / "data" / f"{index}.txt").write_text("\n".join(LINES if index else []))
    (tmp_path / "data" / "classes.txt").write_text("cell\ndust\n")
    return tmp_path / "data"


@pytest.fixture
def convert(tmp_path, capsys):
    main = importlib.import_module("tools.convert").main

    def run(folder, *arguments):
        code = main([str(folder), "--output", str(tmp_path / "out"), *arguments])
        return code, capsys.readouterr(), tmp_path / "out"

    return run


def test_coco_is_read_back(folder, convert):
    code, told, output = convert(folder, "--to", "coco", "--val", "0.4")
    assert code == 0
    assert "train: 3 images" in told.out
    assert "val: 2 images" in told.out
    data = read(output)
    assert {split: len(records) for split, records in data.splits.items()} == {"train": 3, "val": 2}
    found = [masks_of(record) for records in data.splits.values() for record in records if record["annotations"]]
    assert len(found) == 4
    np.testing.assert_array_equal(found, [MASKS] * 4)
    assert json.loads((output / "annotations" / "train.json").read_text())["categories"][1]["name"] == "dust"
    assert not list(output.parent.glob(".*"))


def test_labels_are_read_back(folder, convert):
    code, _, output = convert(folder, "--to", "labels")
    assert code == 0
    records = [
        record
        for split in ("train", "val")
        for record in LabelMapFolder(str(output), split, "images", "labels", "raise")()
    ]
    assert sorted(len(record["annotations"]) for record in records) == [0, 2, 2, 2, 2]
    for record in records:
        label_map = np.asarray(Image.open(record["label_file_name"]))
        if label_map.any():
            np.testing.assert_array_equal([label_map == 1, label_map == 2], MASKS)


def test_what_labels_cannot_say_is_refused(folder, convert):
    (folder / "1.txt").write_text("\n".join([*LINES, LINES[0]]))
    code, told, output = convert(folder, "--to", "labels")
    assert (code, output.exists()) == (1, False)
    assert "cover all of it" in told.err


def test_several_classes_of_labels_are_read_back(folder, convert):
    (folder / "1.txt").write_text("\n".join([LINES[0], LINES[1].replace("0 ", "1 ", 1)]))
    code, _, output = convert(folder, "--to", "labels")
    assert code == 0
    data = read(output)
    assert data.format == "labels"
    found = {Path(each["file_name"]).stem: each for records in data.splits.values() for each in records}
    assert sorted(found) == ["0", "1", "2", "3", "4"]
    assert [data.class_names[each["category_id"]] for each in found["1"]["annotations"]] == ["cell", "dust"]
    np.testing.assert_array_equal(masks_of(found["1"]), MASKS)


@pytest.mark.parametrize("source", ["polygons", "masks"])
def test_yolo_is_read_back(folder, convert, tmp_path, source):
    if source == "masks":
        assert convert(folder, "--to", "labels")[0] == 0
        folder = (tmp_path / "out").rename(tmp_path / "labels")
    code, told, output = convert(folder, "--to", "yolo", "--val", "0.4")
    assert code == 0
    assert "holes" not in told.out
    data = read(output)
    assert (data.format, data.problems) == ("yolo", [])
    assert data.class_names[0] == ("cell" if source == "polygons" else "object")
    expected = {"train": 3, "val": 2} if source == "polygons" else {"train": 4, "val": 1}
    assert {split: len(records) for split, records in data.splits.items()} == expected
    found = [masks_of(record) for records in data.splits.values() for record in records if record["annotations"]]
    np.testing.assert_array_equal(found, [MASKS] * 4)


def test_what_yolo_cannot_say_is_said(tmp_path, convert):
    label_map = (MASKS[0] | MASKS[1]).astype(np.uint8)
    label_map[8:10, 10:14] = 0
    write_image(tmp_path / "data" / "images" / "a.png")
    (tmp_path / "data" / "labels").mkdir()
    label_map[0, 0] = 2
    Image.fromarray(label_map).save(tmp_path / "data" / "labels" / "a.png")
    code, told, output = convert(tmp_path / "data", "--to", "yolo")
    assert code == 0
    assert "1 objects have holes or several parts" in told.out
    (record,) = read(output).splits["train"]
    np.testing.assert_array_equal(masks_of(record)[0], MASKS[0])


def test_a_wrong_line_stops_or_is_left_out(folder, convert):
    (folder / "1.txt").write_text(f"{LINES[0]}\n7 0.5 0.5 0.1 0.1 0.2 0.2\n")
    code, told, output = convert(folder, "--to", "coco")
    assert (code, output.exists()) == (1, False)
    assert "1.txt, line 2" in told.err
    assert "Traceback" not in told.err
    code, told, _ = convert(folder, "--to", "coco", "--on-error", "skip")
    assert code == 0
    assert "left out:" in told.out


def test_numbered_classes_are_joined_on_demand(folder, convert):
    (folder / "classes.txt").write_text("cell_1\ncell_2\n")
    code, told, output = convert(folder, "--to", "coco", "--merge-numbered")
    assert code == 0
    assert "are the class 'cell'" in told.out
    content = json.loads((output / "annotations" / "train.json").read_text())
    assert content["categories"] == [{"id": 1, "name": "cell"}]
    assert {entry["category_id"] for entry in content["annotations"]} == {1}


@pytest.mark.parametrize("case", ["nothing", "unknown", "missing", "full"])
def test_errors_are_a_line(folder, convert, tmp_path, case):
    (tmp_path / "empty").mkdir()
    if case == "full":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "file").touch()
    source = {"nothing": tmp_path / "empty", "missing": tmp_path / "no"}.get(case, folder)
    code, told, _ = convert(source, "--to", "coco", *(["--format", "yol"] if case == "unknown" else []))
    said = {"nothing": "Looked for", "unknown": "'yolo'", "missing": "does not exist", "full": "not empty"}[case]
    assert code == 1
    assert said in told.err
    assert "Traceback" not in told.err
