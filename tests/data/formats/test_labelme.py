"""LabelMe's shapes: as drawn by hand, and what is refused by file and shape."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from annotation_folders import masks_of, read_one, rectangle, write_image
from PIL import Image

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats import read, sniff

SQUARE = [[6, 4], [30, 4], [30, 20], [6, 20]]


def shape(points=SQUARE, kind="polygon", label="cell", **further):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **further}


def write(root, shapes, encoding="utf-8", **further):
    write_image(root / "one.png")
    content = {"imagePath": "one.png", "imageData": None, "shapes": shapes, **further}
    (root / "one.json").write_text(json.dumps(content), encoding=encoding)
    return root


def png(mask):
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    "shapes",
    [
        [shape()],
        [shape([*SQUARE, SQUARE[0]], "linestrip")],
        [shape([[6, 4], [29, 19]], "mask", mask=png(np.ones((16, 24), dtype=bool)))],
        [shape([[6, 4], [29, 19]], "mask", mask=png(np.full((16, 24), 255, dtype=np.uint8)))],
    ],
)
def test_shapes_are_the_pixels_drawn_by_hand(tmp_path, shapes):
    record, data = read_one(write(tmp_path, shapes, encoding="utf-8-sig"))
    assert sniff(tmp_path) == ["labelme"]
    assert not data.problems
    np.testing.assert_array_equal(masks_of(record)[0], rectangle(6, 4, 30, 20))


def test_a_circle(tmp_path):
    record, _ = read_one(write(tmp_path, [shape([[30, 20], [30, 32]], "circle")]))
    y, x = np.mgrid[:40, :60] + 0.5
    disk = (x - 30) ** 2 + (y - 20) ** 2 <= 12**2
    mask = masks_of(record)[0]
    assert (mask & disk).sum() / (mask | disk).sum() > 0.95


def test_a_group_is_one_object_and_no_group_is_not(tmp_path):
    mask = shape([[40, 30], [44, 34]], "mask", mask=png(np.ones((5, 5), dtype=bool)), group_id=3)
    shapes = [shape(group_id=3), mask, shape(group_id=3, label="other"), shape(), shape()]
    record, data = read_one(write(tmp_path, shapes))
    masks = masks_of(record)
    assert len(masks) == 4
    np.testing.assert_array_equal(masks[0], rectangle(6, 4, 30, 20) | rectangle(40, 30, 45, 35))
    assert data.class_names == ["cell", "other"]


@pytest.mark.parametrize("place", ["C:\\Users\\me\\one.png", "../../elsewhere/one.png", "renamed.png"])
def test_an_image_path_of_another_machine(tmp_path, place):
    record, _ = read_one(write(tmp_path, [shape()], imagePath=place))
    assert record["file_name"] == str(tmp_path / "one.png")


def test_no_shapes_are_a_negative_and_no_file_is_left_out(tmp_path):
    write_image(tmp_path / "two.png")
    record, data = read_one(write(tmp_path, []))
    assert record["annotations"] == []
    assert any("two.png" in note for note in data.notes)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (shape(SQUARE, "blob"), "a blob is not understood"),
        (shape(label=""), "no label"),
        (shape([[1, 2, 3]]), "points are"),
        (shape([["x", 1]]), "points are"),
        (shape(SQUARE[:2], "mask", mask="no png"), "no PNG"),
        (shape(SQUARE[:2], "mask"), "without its picture"),
        (shape([[55, 4], [78, 19]], "mask", mask=png(np.ones((16, 24), dtype=bool))), "not within the image"),
        (shape(SQUARE[:2], "mask", mask=png(np.zeros((16, 24), dtype=bool))), "empty"),
        (7, "no label"),
    ],
)
def test_a_shape_without_mask_is_named(tmp_path, wrong, said):
    record, data = read_one(write(tmp_path, [shape(), wrong]))
    assert len(record["annotations"]) == 1
    assert len(data.problems) == 1
    assert said in data.problems[0]
    assert "one.json, shape 1" in data.problems[0]


def test_another_size_and_a_missing_image_are_named(tmp_path):
    assert "141 high" in read(write(tmp_path, [shape()], imageHeight=141, imageWidth=60)).problems[0]
    (tmp_path / "one.png").unlink()
    assert "1 of 1 images that are annotated are not there (1: one.png)" in read(tmp_path).problems[0]


@pytest.mark.parametrize("corners", [[[6, 4], [30, 20]], [[30, 20], [6, 4]], SQUARE])
def test_boxes_are_said_beside_masks_and_refused_without(tmp_path, corners):
    record, data = read_one(write(tmp_path, [shape(), shape(corners, "rectangle")]))
    np.testing.assert_array_equal(masks_of(record)[1], rectangle(6, 4, 30, 20))
    assert any("1 of 2 objects are drawn as boxes" in note for note in data.notes)
    with pytest.raises(DataError, match="all 1 objects are boxes"):
        read(write(tmp_path, [shape(corners, "rectangle")]))


@pytest.mark.parametrize(
    ("slip", "said"),
    [
        (shape(SQUARE[:2]), "a polygon of 2 points"),
        (shape(SQUARE[:2], "line"), "an open line"),
        (shape([[1, 1]], "point"), "a point"),
        (shape([[1, 1], [1, 1]], "circle"), "without area"),
    ],
)
def test_what_has_no_area_is_left_out_and_said(tmp_path, slip, said):
    record, data = read_one(write(tmp_path, [shape(), slip]))
    assert len(record["annotations"]) == 1
    assert not data.problems
    assert any(said in note and "one.json, shape 1" in note for note in data.notes)


def test_an_image_that_the_file_holds_is_taken_from_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKRCNN_PLUS_CACHE", str(tmp_path / "cache"))
    folder = write(tmp_path / "data", [shape()])
    picture = (folder / "one.png").read_bytes()
    write(folder, [shape()], imageData=base64.b64encode(picture).decode())
    (folder / "one.png").unlink()
    record, data = read_one(folder)
    assert Path(record["file_name"]).read_bytes() == picture
    assert Path(record["file_name"]).is_relative_to(tmp_path / "cache")
    assert sorted(file.name for file in folder.iterdir()) == ["one.json"]
    assert any("taken from the JSON" in note for note in data.notes)
    write(folder, [shape()], imageData="bm8gaW1hZ2U=")
    (folder / "one.png").unlink()
    assert "no image in base64" in read(folder).problems[0]


def test_annotation_files_that_are_there_twice_are_one_problem(tmp_path):
    (tmp_path / "backup").mkdir()
    for name in ("one", "two", "three"):
        write_image(tmp_path / f"{name}.png")
        content = {"imagePath": f"{name}.png", "imageData": None, "shapes": [shape()]}
        for folder in (tmp_path, tmp_path / "backup"):
            (folder / f"{name}.json").write_text(json.dumps(content))
    data = read(tmp_path)
    assert len(data.splits["all"]) == 3
    (problem,) = data.problems
    assert all(part in problem for part in ("backup/one.json", "2 more images", "Keep one of them"))


def test_damaged_json_is_named(tmp_path):
    write(tmp_path, [shape()])
    (tmp_path / "two.json").write_text('{"shapes": [')
    data = read(tmp_path)
    assert "two.json cannot be read as JSON" in data.problems[0]
    assert len(data.splits["all"]) == 1
    (tmp_path / "one.json").unlink()
    with pytest.raises(DataError, match=r"two\.json cannot be read"):
        read(tmp_path, "labelme")


def test_regions_to_ignore_are_no_class(tmp_path):
    record, data = read_one(write(tmp_path, [shape(), shape(label="__ignore__")]))
    assert data.class_names == ["cell"]
    assert len(record["annotations"]) == 1
    assert any("a region to ignore" in note for note in data.notes)


def test_lines_of_json_beside_it_are_other_things(tmp_path):
    write(tmp_path, [shape()])
    (tmp_path / "metrics.json").write_text('{"loss": 1.0}\n{"loss": 0.5}\n')
    data = read(tmp_path)
    assert not data.problems
    assert any("metrics.json" in note for note in data.notes)


def test_a_class_has_no_control_characters_and_no_halves_of_characters(tmp_path):
    _, data = read_one(write(tmp_path, [shape(label="a\x1b[31mb\ud83d")]))
    assert data.class_names == ["a\\x1b[31mb\\ud83d"]


@pytest.mark.parametrize("lost", [shape([[1, 1]], "point"), shape([[1, 1], [50, 2]], "line"), shape(SQUARE, "blob")])
def test_an_image_whose_objects_cannot_be_used_is_not_one_without_objects(tmp_path, lost):
    write(tmp_path, [shape()])
    (tmp_path / "one.json").rename(tmp_path / "two.json")
    write(tmp_path, [lost])
    write_image(tmp_path / "two.png")
    content = json.loads((tmp_path / "two.json").read_text())
    (tmp_path / "two.json").write_text(json.dumps({**content, "imagePath": "two.png"}))
    record, data = read_one(tmp_path)
    assert record["file_name"].endswith("two.png")
    assert any("no object could be used" in note and "one.png" in note for note in data.notes)
