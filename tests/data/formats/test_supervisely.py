"""Supervisely's figures: as drawn by OpenCV and by hand."""

import base64
import io
import json
import zlib

import cv2
import numpy as np
import pytest
from annotation_folders import masks_of, read_one, rectangle, write_image
from PIL import Image

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats import ReadOptions, read, sniff

EXTERIOR = [[6, 4], [50, 4], [50, 30], [6, 30]]
HOLE = [[15, 10], [35, 10], [35, 20], [15, 20]]


def figure(kind="polygon", exterior=EXTERIOR, interior=(), label="cell", **further):
    points = {"exterior": exterior, "interior": list(interior)}
    return {"classTitle": label, "geometryType": kind, "points": points, "tags": [], **further}


def bitmap(mask, origin=(6, 4), alpha=False):
    file = io.BytesIO()
    pixels = np.dstack([np.full((*mask.shape, 3), 255, np.uint8), mask.astype(np.uint8) * 255]) if alpha else mask
    Image.fromarray(pixels).save(file, "PNG")
    data = base64.b64encode(zlib.compress(file.getvalue())).decode()
    return figure("bitmap", bitmap={"data": data, "origin": list(origin)})


def write(root, *objects, size=(40, 60), **further):
    write_image(root / "cells" / "img" / "one.png")
    (root / "meta.json").write_text(json.dumps({"classes": [{"title": "cell", "shape": "any"}], "tags": []}))
    (root / "cells" / "ann").mkdir(exist_ok=True)
    content = {"description": "", "tags": [], "size": {"height": size[0], "width": size[1]}, "objects": list(objects)}
    (root / "cells" / "ann" / "one.png.json").write_text(json.dumps({**content, **further}))
    return root


def test_a_polygon_with_a_hole_is_what_opencv_draws_but_for_its_border(tmp_path):
    record, data = read_one(write(tmp_path, figure(interior=[HOLE])))
    assert sniff(tmp_path) == ["supervisely"]
    assert not data.problems
    assert not data.notes
    expected = np.zeros((40, 60), np.uint8)
    cv2.fillPoly(expected, [np.array(EXTERIOR)], 1)
    cv2.fillPoly(expected, [np.array(HOLE)], 0)
    mask = masks_of(record)[0]
    border = cv2.dilate(expected, np.ones((3, 3))) - cv2.erode(expected, np.ones((3, 3)))
    assert not (mask != expected.astype(bool))[border == 0].any()
    assert not mask[15, 25]


@pytest.mark.parametrize(("alpha", "kind"), [(False, "bitmap"), (True, "bitmap"), (True, "alpha_mask")])
def test_a_bitmap_is_its_pixels(tmp_path, alpha, kind):
    part = np.ones((16, 24), dtype=bool)
    part[3:5, 7:9] = False
    record, data = read_one(write(tmp_path, {**bitmap(part, alpha=alpha), "geometryType": kind}))
    assert not data.problems
    np.testing.assert_array_equal(masks_of(record)[0], rectangle(6, 4, 30, 20) & ~rectangle(13, 7, 15, 9))


def test_a_rectangle_holds_both_corners_and_is_said(tmp_path):
    box = figure("rectangle", [[29, 19], [6, 4]])
    record, data = read_one(write(tmp_path, figure(), box))
    np.testing.assert_array_equal(masks_of(record)[1], rectangle(6, 4, 30, 20))
    assert any("boxes" in note for note in data.notes)
    with pytest.raises(DataError, match="boxes"):
        read(write(tmp_path, box))


def test_negatives_points_and_tags(tmp_path):
    assert read_one(write(tmp_path))[0]["annotations"] == []
    record, data = read_one(write(tmp_path, figure(), figure("point", [[1, 2]]), tags=[{"name": "blurred"}]))
    assert len(record["annotations"]) == 1
    assert any("a point (1" in note for note in data.notes)
    assert any("images with tags" in note for note in data.notes)


def test_a_tag_names_the_class(tmp_path):
    write(tmp_path, figure(tags=[{"name": "kind", "value": "NA"}]))
    assert read(tmp_path, options=ReadOptions(attribute="kind")).class_names == ["NA"]


def test_an_image_with_another_extension_is_said(tmp_path):
    write(tmp_path, figure())
    (image,) = tmp_path.rglob("*.png")
    image.rename(image.with_suffix(".PNG"))
    record, data = read_one(tmp_path)
    assert len(record["annotations"]) == 1
    assert any("another extension" in note for note in data.notes)


def test_data_sets_are_splits_by_their_names(tmp_path):
    write(tmp_path, figure())
    (tmp_path / "cells").rename(tmp_path / "train")
    assert list(read(tmp_path).splits) == ["train"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (figure("blob"), "not understood"),
        (figure(label=""), "no class"),
        ({**bitmap(np.ones((3, 3), bool)), "bitmap": {"data": "abc", "origin": [1, 1]}}, "no compressed PNG"),
        ({**bitmap(np.ones((3, 3), bool)), "bitmap": {"data": "abc="}}, "no 'origin'"),
        (bitmap(np.ones((16, 24), bool), (50, 4)), "not within the image"),
        (bitmap(np.ones((41, 24), bool)), "larger than the image"),
        (7, ""),
    ],
)
def test_a_wrong_object_is_named(tmp_path, entry, said):
    record, data = read_one(write(tmp_path, figure(), entry))
    assert len(record["annotations"]) == 1
    assert said in data.problems[0]
    assert "one.png.json, shape 1" in data.problems[0]


def test_objects_outside_of_the_image_are_left_out_unless_most_are(tmp_path):
    outside = figure(exterior=[[-90, -90], [-80, -90], [-80, -80]])
    record, data = read_one(write(tmp_path, figure(), outside))
    assert len(record["annotations"]) == 1
    assert any("outside of its image (1: " in note for note in data.notes)
    assert "outside of the image of 40 high" in read(write(tmp_path, figure(), outside, outside)).problems[1]


def test_a_bitmap_that_grows_is_cut_off(tmp_path):
    entry = figure(
        "bitmap", bitmap={"data": base64.b64encode(zlib.compress(bytes(50_000_000))).decode(), "origin": [0, 0]}
    )
    assert "no compressed PNG" in read(write(tmp_path, figure(), entry)).problems[0]
