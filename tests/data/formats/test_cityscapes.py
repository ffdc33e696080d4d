"""Cityscapes' polygons: drawn in their order by Pillow, as its scripts do."""

import json

import numpy as np
import pytest
from annotation_folders import masks_of, read_one, write_image
from PIL import Image, ImageDraw

from maskrcnn_plus.data.formats import read, sniff

ROAD = ("road", [[0, 0], [59, 0], [59, 39], [0, 39]])
CAR = ("car", [[6, 4], [40, 4], [40, 30], [6, 30]])
PERSON = ("person", [[20, 10], [30, 10], [30, 35], [20, 35]])
GROUP = ("cargroup", [[45, 5], [55, 5], [55, 15], [45, 15]])
POLE = ("pole", [[10, 0], [12, 0], [12, 39], [10, 39]])


def write(root, *objects):
    write_image(root / "leftImg8bit" / "val" / "town" / "town_1_leftImg8bit.png")
    file = root / "gtFine" / "val" / "town" / "town_1_gtFine_polygons.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"label": each[0], "polygon": each[1]} if isinstance(each, tuple) else each for each in objects]
    file.write_text(json.dumps({"imgHeight": 40, "imgWidth": 60, "objects": entries}))
    return root


def test_objects_are_what_is_seen_of_them(tmp_path):
    objects = [ROAD, CAR, PERSON, GROUP, POLE]
    record, data = read_one(write(tmp_path, *objects))
    assert sniff(tmp_path) == ["cityscapes"]
    assert list(data.splits) == ["val"]
    assert not data.problems
    picture = Image.new("L", (60, 40))
    for value, (_, polygon) in enumerate(objects, start=1):
        ImageDraw.Draw(picture).polygon([tuple(point) for point in polygon], fill=value)
    drawn = np.asarray(picture)
    names = [data.class_names[each["category_id"]] for each in record["annotations"]]
    assert names == ["car", "person", "car"]
    assert [each["iscrowd"] for each in record["annotations"]] == [0, 0, 1]
    for mask, value in zip(masks_of(record), (2, 3, 4), strict=True):
        np.testing.assert_array_equal(mask, drawn == value)
    assert any("'road' is a region" in note for note in data.notes)


def test_hidden_and_deleted_objects_and_classes_of_ones_own(tmp_path):
    deleted = {"label": "car", "polygon": CAR[1], "deleted": 1}
    record, data = read_one(write(tmp_path, PERSON, ("my car", CAR[1]), ("truck", ROAD[1]), deleted, PERSON))
    names = [data.class_names[each["category_id"]] for each in record["annotations"]]
    assert names == ["truck", "person"]
    assert any("others hide" in note for note in data.notes)
    assert read_one(write(tmp_path))[0]["annotations"] == []


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"label": "car"}, "no 'polygon'"),
        ({"label": "", "polygon": CAR[1]}, "no label"),
        (7, ""),
        (("car", "x"), ""),
        (("car", [[0, 0], [9e9, 0], [9, 9]]), "far outside"),
    ],
)
def test_a_wrong_object_is_named(tmp_path, entry, said):
    data = read(write(tmp_path, CAR, entry))
    assert said in data.problems[0]
    assert "polygons.json, shape 1" in data.problems[0]
