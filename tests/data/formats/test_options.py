"""What a command line says of annotations, and how files are read once."""

import argparse
import json

import pytest
from annotation_folders import write_image

import maskrcnn_plus.data.formats.files as files
from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats import ReadOptions, read
from maskrcnn_plus.data.formats.options import add_arguments, from_arguments

SQUARE = [[6, 4], [30, 4], [30, 20], [6, 20]]


def write(root, *labels, name="one"):
    write_image(root / f"{name}.png")
    shapes = [{"label": label, "points": SQUARE, "shape_type": "polygon"} for label in labels]
    content = {"imagePath": f"{name}.png", "imageData": None, "shapes": shapes}
    (root / f"{name}.json").write_text(json.dumps(content))


def test_arguments_become_options():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert from_arguments(parser.parse_args([])) == ReadOptions()
    given = parser.parse_args(["--format", "coco", "--attribute", "kind", "--merge-numbered"])
    assert from_arguments(given) == ReadOptions("kind", True)
    assert given.format == "coco"


def test_an_option_that_a_format_does_not_know_is_refused(tmp_path):
    write_image(tmp_path / "a" / "images" / "a.png")
    write_image(tmp_path / "a" / "masks" / "a.png")
    with pytest.raises(DataError, match="--attribute"):
        read(tmp_path, "masks", ReadOptions(attribute="kind"))


def test_numbered_objects_are_said_and_joined_on_demand(tmp_path):
    write(tmp_path, "potato_1", "potato_2", "potato_3", "stone")
    data = read(tmp_path)
    assert data.class_names == ["potato_1", "potato_2", "potato_3", "stone"]
    assert sum("--merge-numbered" in note for note in data.notes) == 1
    data = read(tmp_path, options=ReadOptions(merge_numbered=True))
    assert data.class_names == ["potato", "stone"]
    assert [entry["category_id"] for entry in data.splits["all"][0]["annotations"]] == [0, 0, 0, 1]
    assert not any("--merge-numbered" in note for note in data.notes)


def test_classes_with_numbers_that_have_several_objects_an_image_are_classes(tmp_path):
    write(tmp_path, "type_1", "type_2", "type_3", "type_1")
    assert not any("--merge-numbered" in note for note in read(tmp_path).notes)


def test_a_damaged_file_that_is_alone_is_named(tmp_path):
    (tmp_path / "one.json").write_text('{"shapes": [')
    (tmp_path / "two.json").write_text("")
    with pytest.raises(DataError, match=r"one\.json cannot be read as JSON.*1 more"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("folder", "split"),
    [("train2017", "train"), ("test_images", "test"), ("Valid", "val"), ("my-training", "train"), ("trained", "all")],
)
def test_folders_are_splits_by_the_words_of_their_names(tmp_path, folder, split):
    assert files.split_of(tmp_path / folder / "x.png", tmp_path) == split


def test_each_file_is_parsed_once(tmp_path, monkeypatch):
    write(tmp_path, "cell")
    write(tmp_path, "cell", name="two")
    parsed, loads = [], json.loads

    def count(text, **further):
        parsed.append(text)
        return loads(text, **further)

    monkeypatch.setattr(files.json, "loads", count)
    assert len(read(tmp_path).splits["all"]) == 2
    assert len(parsed) == 2
