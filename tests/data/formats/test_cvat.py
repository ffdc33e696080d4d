"""CVAT's shapes: as drawn by hand, and what is refused by file, image and shape."""

import numpy as np
import pytest
from annotation_folders import masks_of, read_one, rectangle, write_image

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats import read, sniff

POLYGON = '<polygon label="cell" points="6,4;30,4;30,20;6,20"/>'


def write(root, shapes, size='width="60" height="40"'):
    write_image(root / "images" / "one.png")
    text = f'<annotations><version>1.1</version><image id="0" name="one.png" {size}>{shapes}</image></annotations>'
    (root / "annotations.xml").write_text(text)
    return root


@pytest.mark.parametrize(
    ("shapes", "mask"),
    [
        (POLYGON, rectangle(6, 4, 30, 20)),
        ('<box label="cell" xtl="6" ytl="4" xbr="30" ybr="20"/>', rectangle(6, 4, 30, 20)),
        (
            '<mask label="cell" rle="1,2,3" left="6" top="4" width="3" height="2"/>',
            rectangle(7, 4, 9, 5),
        ),
        (
            '<mask label="cell" rle="0,3,2,1" left="6" top="4" width="3" height="2"/>',
            rectangle(6, 4, 9, 5) | rectangle(8, 5, 9, 6),
        ),
    ],
)
def test_shapes_are_the_pixels_drawn_by_hand(tmp_path, shapes, mask):
    record, data = read_one(write(tmp_path, shapes))
    assert sniff(tmp_path) == "cvat"
    assert not data.problems
    np.testing.assert_array_equal(masks_of(record)[0], mask)


def test_an_ellipse(tmp_path):
    record, _ = read_one(write(tmp_path, '<ellipse label="cell" cx="30" cy="20" rx="20" ry="10"/>'))
    y, x = np.mgrid[:40, :60] + 0.5
    disk = ((x - 30) / 20) ** 2 + ((y - 20) / 10) ** 2 <= 1
    mask = masks_of(record)[0]
    assert (mask & disk).sum() / (mask | disk).sum() > 0.95


def test_no_shapes_are_a_negative(tmp_path):
    assert read_one(write(tmp_path, ""))[0]["annotations"] == []


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ('<polyline label="cell" points="1,1;2,2"/>', "a polyline has no mask"),
        ('<tag label="cell"/>', "a tag has no mask"),
        ('<polygon label="cell" points="1,1;2,2"/>', "3 points"),
        ('<polygon label="cell" points=""/>', "could not convert"),
        ('<box label="cell" rotation="30" xtl="6" ytl="4" xbr="30" ybr="20"/>', "rotated"),
        ('<mask label="cell" rle="1,2" left="6" top="4" width="3" height="2"/>', "add up"),
        ('<mask label="cell" rle="1,5" left="inf" top="4" width="3" height="2"/>', "infinity"),
        ('<mask label="cell" rle="1,5" left="59" top="4" width="3" height="2"/>', "not within"),
    ],
)
def test_a_shape_without_mask_is_named(tmp_path, shape, said):
    record, data = read_one(write(tmp_path, POLYGON + shape))
    assert len(record["annotations"]) == 1
    assert said in data.problems[0]
    assert "image 'one.png', shape 1" in data.problems[0]


def test_another_size_is_named(tmp_path):
    assert "41 x 60" in read(write(tmp_path, POLYGON, 'width="60" height="41"')).problems[0]


@pytest.mark.parametrize(
    "text",
    [
        "<annotations><image>",
        '<!DOCTYPE a [<!ENTITY e "x">]><annotations><image name="&e;"/></annotations>',
        '<annotations><track id="0" label="cell"/></annotations>',
    ],
)
def test_files_that_are_refused(tmp_path, text):
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(DataError, match=r"annotations\.xml"):
        read(tmp_path, "cvat")
