"""YOLO's polygons: as drawn by hand, and what is refused by file and line."""

import os
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
import supervision as sv
from annotation_folders import masks_of, read_one, rectangle, write_image

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats import read, sniff

BOX = "1 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5"  # x 6..30, y 4..20 of 60 x 40


def write(root, label=BOX, yaml="names: [a, b]\ntrain: images/train\n"):
    write_image(root / "images" / "train" / "one.png")
    (root / "labels" / "train").mkdir(parents=True, exist_ok=True)
    if label is not None:
        (root / "labels" / "train" / "one.txt").write_text(label)
    if yaml is not None:
        (root / "data.yaml").write_text(yaml)
    return root


def test_a_polygon_is_the_pixels_drawn_by_hand(tmp_path):
    record, data = read_one(write(tmp_path))
    assert sniff(tmp_path) == ["yolo"]
    assert list(data.splits) == ["train"]
    np.testing.assert_array_equal(masks_of(record)[0], rectangle(6, 4, 30, 20))
    assert record["annotations"][0]["category_id"] == 1
    assert record["annotations"][0]["bbox"] == pytest.approx([6, 4, 30, 20])


@pytest.mark.parametrize(
    "yaml",
    [
        "names: {0: a, 1: b}\ntrain: images/train\n",
        "names: [a, b]\npath: C:\\data\\mine\ntrain: images/train\n",
        "names: [a, b]\npath: /somewhere/else\ntrain: images/train\nval: images/val\n",
        "names: [a, b]\ntrain: ../images/train\n",
        "names: [a, b]\ntrain: D:\\other\\images\\train\n",
        "names: [a, b]\ntrain: train.txt\n",
        "names: [NA, b]\ntrain: [images/train]\n",
    ],
)
def test_ways_to_name_classes_and_places(tmp_path, yaml):
    write(tmp_path, yaml=yaml)
    (tmp_path / "train.txt").write_text("./images/train/one.png\n")
    record, data = read_one(tmp_path)
    assert len(record["annotations"]) == 1
    assert data.class_names in (["a", "b"], ["NA", "b"])


def test_a_missing_split_is_said(tmp_path):
    _, data = read_one(write(tmp_path, yaml="names: [a, b]\ntrain: images/train\nval: images/val\n"))
    assert any("images/val" in note for note in data.notes)


def test_a_missing_text_file_and_an_empty_one_are_negatives(tmp_path):
    record, data = read_one(write(tmp_path, label=None))
    assert record["annotations"] == []
    assert any("without objects" in note for note in data.notes)
    assert read_one(write(tmp_path, label="\n"))[0]["annotations"] == []


def test_plain_folders_with_classes(tmp_path):
    write(tmp_path, yaml=None)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "labels" / "train" / "._one.txt").write_bytes(b"\0\5\x16\7")
    record, data = read_one(tmp_path)
    assert data.class_names == ["a", "b"]
    assert len(record["annotations"]) == 1
    assert not data.problems
    (tmp_path / "labels" / "train" / "two.txt").write_text(BOX)
    assert "two.txt" in read(tmp_path).problems[0]


def test_classes_without_names_are_numbers(tmp_path):
    write(tmp_path, yaml=None)
    assert sniff(tmp_path) == ["yolo"]
    data = read(tmp_path)
    assert data.class_names == ["0", "1"]
    assert any("called by their numbers" in note for note in data.notes)
    (tmp_path / "obj.names").write_text("a\nNA\n")
    assert read(tmp_path).class_names == ["a", "NA"]


def test_masks_are_those_that_supervision_reads(tmp_path):
    rng = np.random.default_rng(0)
    lines = []
    for number in range(5):
        angles = np.sort(rng.random(9)) * 2 * np.pi
        points = rng.uniform(0.3, 0.7, 2) + 0.25 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        lines.append(" ".join(map(str, [number % 2, *points.reshape(-1)])))
    record, _ = read_one(write(tmp_path, label="\n".join(lines)))
    folders = [str(tmp_path / name / "train") for name in ("images", "labels")]
    other = sv.DetectionDataset.from_yolo(*folders, str(tmp_path / "data.yaml"), force_masks=True)
    (found,) = other.annotations.values()
    assert found.class_id.tolist() == [entry["category_id"] for entry in record["annotations"]]
    for mask, expected in zip(masks_of(record), found.mask, strict=True):
        # supervision cuts coordinates to integers and draws with OpenCV, whose polygons contain their border.
        inner, outer = (change(expected.astype(np.uint8), np.ones((5, 5))) for change in (cv2.erode, cv2.dilate))
        assert (mask >= inner).all()
        assert (mask <= outer).all()


def test_names_beside_classes(tmp_path):
    write(tmp_path)
    (tmp_path / "classes.txt").write_text("x\ny\n")
    _, data = read_one(tmp_path)
    assert data.class_names == ["a", "b"]
    assert any("classes.txt" in note for note in data.notes)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2 0.1 0.1 0.5 0.1 0.5 0.5", "class 2 is unknown"),
        ("-1 0.1 0.1 0.5 0.1 0.5 0.5", "class -1 is unknown"),
        ("0.5 0.1 0.1 0.5 0.1 0.5 0.5", "class 0.5 is unknown"),
        ("0 0.1 0.1 0.5 0.1 0.5 0.5 0.7", "7 coordinates"),
        ("0 10 10 50 10 50 50", "not within 0..1"),
        ("0 nan 0.1 0.5 0.1 0.5 0.5", "not finite"),
        ("cell 0.1 0.1", "not numbers"),
    ],
)
def test_a_line_that_is_no_polygon_is_named(tmp_path, line, said):
    record, data = read_one(write(tmp_path, label=f"{BOX}\n{line}\n"))
    assert len(record["annotations"]) == 1
    assert len(data.problems) == 1
    assert said in data.problems[0]
    assert "one.txt, line 2" in data.problems[0]


def test_boxes_are_left_out_beside_masks_and_refused_without(tmp_path):
    boxes = "0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2 0.9\n"
    record, data = read_one(write(tmp_path, label=f"{BOX}\n{boxes}0 0.1 0.1\n"))
    assert len(record["annotations"]) == 1
    assert not data.problems
    assert any("a box (2: " in note and "line 2" in note for note in data.notes)
    assert any("a polygon of 1 points" in note for note in data.notes)
    with pytest.raises(DataError, match=r"no object has a mask.*a box \(2\)"):
        read(write(tmp_path, label=boxes))


@pytest.mark.parametrize(
    ("names", "classes", "name"),
    [
        ("[no, NA]", ["no", "NA"], "NA"),
        ("[yes, null]", ["yes", "null"], "null"),
        ("[on, 1.0]", ["on", "1.0"], "1.0"),
        ("{3: x, 1: cell}", ["cell", "x"], "cell"),
        ("[cell, cell]", ["cell"], "cell"),
    ],
)
def test_names_are_the_text_that_stands_there(tmp_path, names, classes, name):
    record, data = read_one(write(tmp_path, yaml=f"names: {names}\ntrain: images/train\n"))
    assert data.class_names == classes
    assert data.class_names[record["annotations"][0]["category_id"]] == name


@pytest.mark.parametrize("names", ["[a, [b]]", "{a: 1}", "3", "[a, '']", "&x [*x]"])
def test_names_that_are_no_classes_are_refused(tmp_path, names):
    with pytest.raises(DataError, match=r"data\.yaml"):
        read(write(tmp_path, yaml=f"names: {names}\ntrain: images/train\n"))


def test_an_image_in_two_splits_is_of_the_first(tmp_path):
    _, data = read_one(write(tmp_path, yaml="names: [a, b]\ntrain: images/train\nval: images/train\n"))
    assert list(data.splits) == ["train"]
    assert any("1 images are in train and in val" in note for note in data.notes)


def test_four_points_may_be_rotated_boxes(tmp_path):
    assert any("rotated boxes" in note for note in read(write(tmp_path)).notes)


def test_a_yaml_in_a_sub_folder_and_nothing_outside(tmp_path):
    write(tmp_path / "data" / "mine", yaml=None)
    write(tmp_path / "other", yaml=None)
    (tmp_path / "data" / "settings").mkdir()
    file = tmp_path / "data" / "settings" / "data.yaml"
    file.write_text("names: [a, b]\npath: ../mine\ntrain: images/train\nval: ../../other/images\n")
    record, data = read_one(tmp_path / "data")
    assert record["file_name"] == str(tmp_path / "data" / "settings" / ".." / "mine" / "images" / "train" / "one.png")
    assert any("other/images" in note and "not there" in note for note in data.notes)


def test_a_copy_without_labels_is_no_negative(tmp_path):
    write(tmp_path, yaml=None)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    write_image(tmp_path / "all" / "one.png")
    (record,) = (record for records in read(tmp_path).splits.values() for record in records)
    assert len(record["annotations"]) == 1


def test_a_pipe_is_not_waited_for(tmp_path):
    write(tmp_path, yaml=None)
    os.mkfifo(tmp_path / "notes_of_mine.txt")
    os.mkfifo(tmp_path / "labels" / "train" / "two.txt")
    write_image(tmp_path / "images" / "train" / "two.png")
    assert "one.png" in read(tmp_path).splits["train"][0]["file_name"]


@pytest.mark.parametrize("line", ["train: &a [*a]", "train: [[images/train]]", "train: {a: 1}"])
def test_places_that_are_no_text_are_refused(tmp_path, line):
    with pytest.raises(DataError, match=r"data\.yaml"):
        read(write(tmp_path, yaml=f"names: [a, b]\n{line}\n"))


def test_an_image_of_boxes_alone_is_not_one_without_objects(tmp_path):
    write(tmp_path)
    for name, text in (("boxes", "1 0.5 0.5 0.2 0.2"), ("none", "")):
        write_image(tmp_path / "images" / "train" / f"{name}.png")
        (tmp_path / "labels" / "train" / f"{name}.txt").write_text(text)
    data = read(tmp_path)
    assert [Path(each["file_name"]).stem for each in data.splits["train"]] == ["none", "one"]
    assert any("every object is a box" in note and "boxes.png" in note for note in data.notes)


def test_poses_are_no_outlines(tmp_path):
    with pytest.raises(DataError, match=r"data\.yaml is of poses"):
        read(write(tmp_path, yaml="names: [a, b]\ntrain: images/train\nkpt_shape: [4, 3]\n"))


def test_text_files_without_image_are_told_beside_a_yaml_too(tmp_path):
    write(tmp_path)
    (tmp_path / "labels" / "train" / "gone.txt").write_text(BOX)
    _, data = read_one(tmp_path)
    assert any(note.startswith("1 text files have no image of their name") for note in data.notes)


def test_labels_of_names_of_a_mac_and_of_jpegs_by_another_name(tmp_path):
    write(tmp_path)
    (tmp_path / "images" / "train" / "one.png").unlink()
    for name in (unicodedata.normalize("NFD", "zäh.png"), "two.jfif"):
        write_image(tmp_path / "images" / "train" / "other.jpg")
        (tmp_path / "images" / "train" / "other.jpg").rename(tmp_path / "images" / "train" / name)
    for name in (unicodedata.normalize("NFC", "zäh.txt"), "two.txt"):
        (tmp_path / "labels" / "train" / name).write_text(BOX)
    assert [len(record["annotations"]) for record in read(tmp_path).splits["train"]] == [1, 1]


def test_an_image_whose_lines_cannot_be_used_is_no_negative(tmp_path):
    data = read(write(tmp_path, label="7 0.1 0.1 0.5 0.1 0.5 0.5\n"))
    assert not any(data.splits.values())
    assert any("no object could be used" in note for note in data.notes)
