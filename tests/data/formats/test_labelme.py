"""LabelMe's shapes: as drawn by hand, and what is refused by file and shape."""

import base64
import io
import json

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
        [shape([[6, 4], [30, 20]], "rectangle")],
        [shape([[30, 20], [6, 4]], "rectangle")],
        [shape([[6, 4], [29, 19]], "mask", mask=png(np.ones((16, 24), dtype=bool)))],
        [shape([[6, 4], [29, 19]], "mask", mask=png(np.full((16, 24), 255, dtype=np.uint8)))],
    ],
)
def test_shapes_are_the_pixels_drawn_by_hand(tmp_path, shapes):
    record, data = read_one(write(tmp_path, shapes, encoding="utf-8-sig"))
    assert sniff(tmp_path) == "labelme"
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
        (shape(SQUARE[:2]), "2 points"),
        (shape(SQUARE[:2], "line"), "a line has no area"),
        (shape([[1, 1]], "point"), "a point has no area"),
        (shape(label=""), "no label"),
        (shape([[1, 2, 3]]), "points are"),
        (shape([["x", 1]]), "could not convert"),
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
    assert "41 high" in read(write(tmp_path, [shape()], imageHeight=41, imageWidth=60)).problems[0]
    (tmp_path / "one.png").unlink()
    assert "is not there" in read(tmp_path).problems[0]


def test_damaged_json_is_named(tmp_path):
    write(tmp_path, [shape()])
    (tmp_path / "two.json").write_text('{"shapes": [')
    with pytest.raises(DataError, match=r"two\.json"):
        read(tmp_path)
