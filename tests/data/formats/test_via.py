"""VIA's shapes in all of its files: as drawn by hand, and what names their class."""

import csv
import json

import numpy as np
import pytest
from annotation_folders import masks_of, read_one, rectangle, write_image
from PIL import Image, ImageDraw

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats import ReadOptions, read, sniff

POLYGON = {"name": "polygon", "all_points_x": [6, 30, 30, 6], "all_points_y": [4, 4, 20, 20]}
COLUMNS = ["filename", "file_size", "file_attributes", "region_count", "region_id"]
COLUMNS += ["region_shape_attributes", "region_attributes"]


def region(shape=POLYGON, **attributes):
    return {"shape_attributes": shape, "region_attributes": attributes}


def entry(regions, name="one.png"):
    return {"filename": name, "size": 123, "regions": regions, "file_attributes": {}}


def write(root, *regions, form="v2"):
    write_image(root / "one.png")
    listed = {str(k): each for k, each in enumerate(regions)} if form == "v1" else list(regions)
    content = {"one.png123": entry(listed)}
    if form == "project":
        content = {"_via_settings": {}, "_via_img_metadata": content, "_via_attributes": {"region": {}}}
    (root / "via.json").write_text(json.dumps(content))
    return root


def write_csv(root, *rows, delimiter=","):
    """Rows of (shape, attributes) as texts."""
    write_image(root / "one.png")
    with (root / "via.csv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(COLUMNS)
        writer.writerows(
            ["one.png", 123, "{}", len(rows), k, shape, attributes] for k, (shape, attributes) in enumerate(rows)
        )
    return root


@pytest.mark.parametrize("form", ["v1", "v2", "project", "csv"])
def test_a_polygon_is_the_pixels_drawn_by_hand(tmp_path, form):
    if form == "csv":
        write_csv(tmp_path, (json.dumps(POLYGON), '{"kind": "NA"}'))
    else:
        write(tmp_path, region(kind="NA"), form=form)
    record, data = read_one(tmp_path)
    assert sniff(tmp_path) == [data.format] == ["via"]
    assert data.class_names == ["NA"]
    assert not data.problems
    np.testing.assert_array_equal(masks_of(record)[0], rectangle(6, 4, 30, 20))


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [
        ({"name": "circle", "cx": 30, "cy": 20, "r": 12}, (18, 8, 42, 32)),
        ({"name": "ellipse", "cx": 30, "cy": 20, "rx": 20, "ry": 10, "theta": 0}, (10, 10, 50, 30)),
        ({"name": "ellipse", "cx": 30, "cy": 20, "rx": 10, "ry": 20, "theta": np.pi / 2}, (10, 10, 50, 30)),
    ],
)
def test_circles_and_ellipses(tmp_path, shape, drawn):
    record, _ = read_one(write(tmp_path, region(shape, kind="cell")))
    picture = Image.new("1", (600, 400))  # drawn ten times as large by another library
    ImageDraw.Draw(picture).ellipse([10 * side for side in drawn], fill=1)
    expected = np.asarray(picture)[5::10, 5::10]
    mask = masks_of(record)[0]
    assert (mask & expected).sum() / (mask | expected).sum() > 0.95


def test_a_closed_polyline_is_an_outline_and_what_has_no_area_is_left_out(tmp_path):
    line = {**POLYGON, "name": "polyline"}
    open_line = {"name": "polyline", "all_points_x": [1, 20, 40], "all_points_y": [1, 2, 1]}
    point = {"name": "point", "cx": 1, "cy": 2}
    two = {"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1, 2]}
    record, data = read_one(write(tmp_path, *(region(each, kind="x") for each in (line, open_line, point, two))))
    np.testing.assert_array_equal(masks_of(record), [rectangle(6, 4, 30, 20)])
    assert not data.problems
    for said in ("an open line (1", "a point (1", "a polygon of 2 points (1", "lines that end near their start"):
        assert any(said in note for note in data.notes)


def test_boxes_alone_are_refused(tmp_path):
    box = region({"name": "rect", "x": 6, "y": 4, "width": 24, "height": 16}, kind="cell")
    with pytest.raises(DataError, match="all 1 objects are boxes"):
        read(write(tmp_path, box))
    record, data = read_one(write(tmp_path, box, region(kind="cell")))
    np.testing.assert_array_equal(masks_of(record)[0], rectangle(6, 4, 30, 20))
    assert any("1 of 2 objects are drawn as boxes" in note for note in data.notes)


def test_the_class_is_the_attribute_that_most_have_and_that_is_no_text(tmp_path):
    regions = [region(kind="cat" if k % 2 else "dog", note=f"seen at {k}", age="old") for k in range(30)]
    regions += [region(kind="cat")]
    write(tmp_path, *regions)
    data = read(tmp_path)
    assert sorted(data.class_names) == ["cat", "dog"]
    assert any("'kind' names the class" in note and "--attribute" in note for note in data.notes)
    data = read(tmp_path, options=ReadOptions(attribute="age"))
    assert data.class_names == ["old"]
    with pytest.raises(DataError, match=r"'agee'. Did you mean 'age'\?"):
        read(tmp_path, options=ReadOptions(attribute="agee"))


def test_objects_without_the_attribute(tmp_path):
    _, data = read_one(write(tmp_path, region(kind="cat"), region(kind=""), region()))
    assert data.class_names == ["cat"]
    assert len(data.splits["all"][0]["annotations"]) == 3  # the only class there is
    record, data = read_one(write(tmp_path, region(kind="cat"), region(kind="dog"), region(kind=None)))
    assert len(record["annotations"]) == 2
    assert any("without a value of 'kind'" in note for note in data.notes)
    _, data = read_one(write(tmp_path, region(), region()))
    assert data.class_names == ["object"]
    assert any("no attributes" in note for note in data.notes)


def test_ticked_boxes_are_a_value(tmp_path):
    assert read(write(tmp_path, region(kind={"cat": True, "dog": False}))).class_names == ["cat"]


def test_no_regions_are_a_negative_and_images_elsewhere_are_said(tmp_path):
    write_image(tmp_path / "two.png")
    record, data = read_one(write(tmp_path))
    assert record["annotations"] == []
    assert any("two.png" in note for note in data.notes)
    record, _ = read_one(write_csv(tmp_path / "csv", ("{}", "{}")))
    assert record["annotations"] == []


def test_json_and_csv_of_the_same_are_read_once(tmp_path):
    write(tmp_path, region(kind="cell"))
    write_csv(tmp_path, (json.dumps(POLYGON), '{"kind": "cell"}'))
    record, data = read_one(tmp_path)
    assert len(record["annotations"]) == 1
    assert not data.problems
    assert any("annotate alike" in note for note in data.notes)


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        (json.dumps({**POLYGON, "more": 0}).replace("0}", "undefined}"), '{"kind": "cell"}'),
        (json.dumps(POLYGON).replace('"', ""), "{kind: cell}"),
        (json.dumps(POLYGON), '{"kind": "cell", "other": undefined}'),
        (json.dumps(POLYGON), '{"kind": cell}'),
    ],
)
def test_bare_words_in_the_json_of_a_csv(tmp_path, shape, attributes):
    record, data = read_one(write_csv(tmp_path, (shape, attributes), delimiter=";"))
    assert data.class_names == ["cell"]
    assert not data.problems
    np.testing.assert_array_equal(masks_of(record)[0], rectangle(6, 4, 30, 20))
    assert any("bare words" in note for note in data.notes)


def test_a_long_row_of_a_csv_leaves_the_limit_of_the_process(tmp_path):
    before = csv.field_size_limit()
    x = np.linspace(6, 30, 20_000).round(4).tolist()
    shape = {"name": "polygon", "all_points_x": [*x, 30, 6], "all_points_y": [4] * len(x) + [20, 20]}
    record, _ = read_one(write_csv(tmp_path, (json.dumps(shape), '{"kind": "cell"}')))
    np.testing.assert_array_equal(masks_of(record)[0], rectangle(6, 4, 30, 20))
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"name": "blob"}, "not understood"),
        ({"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 2]}, "of one length"),
        ({"name": "polygon", "all_points_x": [1, 2, "x"], "all_points_y": [1, 2, 3]}, "its points are"),
        ({"name": "circle", "cx": 1, "cy": 2}, "has no 'r'"),
        ({}, "has no 'name'"),
        (7, ""),
    ],
)
def test_a_wrong_shape_is_named(tmp_path, shape, said):
    record, data = read_one(write(tmp_path, region(kind="cell"), region(shape, kind="cell")))
    assert len(record["annotations"]) == 1
    assert said in data.problems[0]
    assert "via.json, image 'one.png', shape 1" in data.problems[0]


def test_a_row_that_is_no_json_is_named(tmp_path):
    write_csv(tmp_path, (json.dumps(POLYGON), '{"kind": "cell"}'), ("{[", "{}"))
    assert "via.csv, row 3" in read(tmp_path).problems[0]


def write_two(root, first, second):
    """Two files of VIA beside an image each."""
    for folder, regions in (("train", first), ("val", second)):
        write_image(root / folder / f"{folder}.png")
        content = {f"{folder}.png1": entry(regions, f"{folder}.png")}
        (root / folder / "via_region_data.json").write_text(json.dumps(content))
    return root


def test_an_attribute_of_another_name_with_the_same_classes_counts(tmp_path):
    both = [region(piece="king"), region(piece="pawn")]
    data = read(write_two(tmp_path, [*both, *both], [region(kind="pawn")]))
    (record,) = data.splits["val"]
    assert [data.class_names[each["category_id"]] for each in record["annotations"]] == ["pawn"]
    assert any("'piece', which were taken for 'pawn' (1" in note for note in data.notes)


@pytest.mark.parametrize(
    "lost",
    [region(kind="rook"), region({"name": "polyline", "all_points_x": [1, 20], "all_points_y": [1, 2]}, piece="king")],
)
def test_an_image_whose_objects_cannot_be_used_is_not_one_without_objects(tmp_path, lost):
    data = read(write_two(tmp_path, [region(piece="king"), region(piece="pawn")], [lost]))
    assert list(data.splits) == ["train"]
    assert any("no object could be used" in note and "val.png" in note for note in data.notes)
