"""Label Studio's shapes and brush: as drawn by hand."""

import base64
import io
import json

import numpy as np
import pytest
from annotation_folders import masks_of, read_one, rectangle, write_image
from PIL import Image

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats import ReadOptions, read, sniff
from maskrcnn_plus.data.formats.brush import decode_brush

POINTS = [[10, 10], [50, 10], [50, 50], [10, 50]]  # per cent of 60 x 40: x 6..30, y 4..20

# What mask2rle of label-studio-sdk 2.1.2 makes of `BRUSHED`.
BRUSH = list(
    base64.b64decode(
        "AAAlgDkb/wPXAMv/+jwDL//o8Ay//6PAMv/+jwC//4nAMT/+jwC//4nAMT/+jwC//4nAMT/+jwC//4nAMT/+jwDL//o8Ay//6PAM"
        "v/+jwDL//o8Ay//6PAMv/+jwDL//o8Ay//8FJwCP/nAI/+cAj/5wCP/nAI/+cAj/5wCP/nAI/+cAj/5wCP/nAI/+cAj/5wCP/nAI"
        "/+cAj/5wCP/nAI/+cAj/5wCP/nAI//hpOAA="
    )
)
BRUSHED = rectangle(6, 4, 30, 20) & ~rectangle(10, 8, 20, 12)
BRUSHED[25, ::3] = True


def result(value=None, kind="polygonlabels", label="cell", number="a", **further):
    value = {"points": POINTS} if value is None else value
    labels = {} if label is None else {kind: [label]}
    return {
        "id": number,
        "type": kind,
        "from_name": "label",
        "original_width": 60,
        "original_height": 40,
        "image_rotation": 0,
        "value": {**value, **labels},
        **further,
    }


def write(root, *results, image="/data/upload/1/0a1b2c3d-one.png", **further):
    write_image(root / "images" / "one.png")
    task = {"id": 5, "data": {"image": image}, "annotations": [{"result": list(results)}], **further}
    (root / "export.json").write_text(json.dumps([task]))
    return root


def bitmask(mask):
    file = io.BytesIO()
    Image.fromarray(np.stack([0 * mask] * 3 + [255 * mask], axis=2).astype(np.uint8)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.mark.parametrize(
    ("entry", "mask"),
    [
        (result(), rectangle(6, 4, 30, 20)),
        (result({"rle": BRUSH, "format": "rle"}, "brushlabels"), BRUSHED),
        (result({"imageDataURL": bitmask(BRUSHED)}, "bitmasklabels"), BRUSHED),
    ],
)
def test_shapes_are_the_pixels_drawn_by_hand(tmp_path, entry, mask):
    record, data = read_one(write(tmp_path, entry))
    assert sniff(tmp_path) == ["label_studio"]
    assert not data.problems
    assert data.class_names == ["cell"]
    np.testing.assert_array_equal(masks_of(record)[0], mask)


def test_a_turned_box_turns_around_its_corner_and_is_said(tmp_path):
    box = result({"x": 50, "y": 10, "width": 40 * 2 / 3, "height": 30, "rotation": 90}, "rectanglelabels")
    record, data = read_one(write(tmp_path, result(), box))
    np.testing.assert_array_equal(masks_of(record)[1], rectangle(18, 4, 30, 20))
    assert any("1 of 2 objects are drawn as boxes" in note for note in data.notes)
    with pytest.raises(DataError, match="boxes"):
        read(write(tmp_path, box))


def test_an_ellipse_has_its_centre_and_is_turned_in_pixels(tmp_path):
    value = {"x": 50, "y": 50, "radiusX": 10 / 60 * 100, "radiusY": 15 / 40 * 100, "rotation": 90}
    record, _ = read_one(write(tmp_path, result(value, "ellipselabels")))
    y, x = np.mgrid[:40, :60] + 0.5
    expected = ((x - 30) / 15) ** 2 + ((y - 20) / 10) ** 2 <= 1
    mask = masks_of(record)[0]
    assert (mask & expected).sum() / (mask | expected).sum() > 0.95


@pytest.mark.parametrize(
    "name",
    [
        "one.png",
        "/data/upload/1/0a1b2c3d-one.png",
        "/data/local-files/?d=mine%2Fimages%2Fone.png",
        "s3://bucket/folder/one.png",
        "https://host/path/one.png?token=abc",
    ],
)
def test_names_of_images(tmp_path, name):
    record, data = read_one(write(tmp_path, result(), image=name))
    assert record["file_name"] == str(tmp_path / "images" / "one.png")
    assert not data.problems


def test_a_label_that_is_a_result_of_its_own_and_an_attribute(tmp_path):
    shape = result(kind="polygon", label=None)
    label = result({"points": POINTS, "labels": ["cell"]}, "labels", None)
    del label["value"]["points"]
    kind = {"id": "a", "type": "choices", "from_name": "kind", "value": {"choices": ["NA"]}, "original_width": 60}
    write(tmp_path, shape, label, {**kind, "original_height": 40})
    assert read(tmp_path).class_names == ["cell"]
    data = read(tmp_path, options=ReadOptions(attribute="kind"))
    assert data.class_names == ["NA"]
    assert len(data.splits["all"][0]["annotations"]) == 1


def test_tasks_that_are_not_annotated_are_no_negatives(tmp_path):
    record, _ = read_one(write(tmp_path))
    assert record["annotations"] == []
    for made in ([], [{"result": [], "was_cancelled": True}]):
        data = read(write(tmp_path, annotations=made))
        assert not data.splits
        assert any("nobody has annotated" in note for note in data.notes)


def test_of_several_annotations_the_true_one_is_taken(tmp_path):
    made = [{"result": [result(label="b")], "ground_truth": True}, {"result": [result()]}]
    _, data = read_one(write(tmp_path, annotations=made))
    assert data.class_names == ["b"]
    assert any("several annotations" in note for note in data.notes)


def test_tags_of_the_image_are_left_out_and_said(tmp_path):
    tag = {"id": "t", "type": "choices", "from_name": "view", "value": {"choices": ["top"]}}
    record, data = read_one(write(tmp_path, result(), tag))
    assert len(record["annotations"]) == 1
    assert any("a tag of the whole image" in note for note in data.notes)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (result(image_rotation=90), "turned"),
        (result({"points": [["x", 1]]}), "its points are"),
        (result({"rle": BRUSH[:50]}, "brushlabels"), "ends before"),
        (result({"rle": [0, 0, 37, 132, *BRUSH[4:]]}, "brushlabels"), "holds"),
        (result({"rle": [300]}, "brushlabels"), "0 to 255"),
        (result({"rle": "abc"}, "brushlabels"), "0 to 255"),
        (result({"x": 1, "y": 2, "width": 3}, "rectanglelabels"), "has no 'height'"),
        (result({"imageDataURL": "data:image/png;base64,xx"}, "bitmasklabels"), "no PNG in base64"),
        (result({"imageDataURL": bitmask(np.ones((3, 4), dtype=bool))}, "bitmasklabels"), "3 x 4"),
        (result({"vertices": [{"id": "1", "x": 1, "y": 2}], "closed": True}, "vectorlabels"), "a vector"),
        (7, ""),
    ],
)
def test_a_wrong_result_is_named(tmp_path, entry, said):
    data = read(write(tmp_path, result(), entry))
    assert said in data.problems[0]
    assert "export.json, task 5" in data.problems[0]


def test_a_brush_without_runs_is_bounded_by_its_image():
    with pytest.raises(ValueError, match="holds 4294967295 values"):
        decode_brush([255] * 1000, 40, 60)


def test_the_short_form_is_read_as_the_long_one(tmp_path):
    """JSON-MIN: what was drawn with a control stands under its name, beside the image."""
    drawn = [result(number="a"), result({"rle": BRUSH, "format": "rle"}, "brushlabels", number="b")]
    long, _ = read_one(write(tmp_path / "long", *drawn))
    root = tmp_path / "short"
    write_image(root / "images" / "one.png")
    write_image(root / "images" / "two.png")
    facts = {"annotator": 1, "annotation_id": 7, "created_at": "2026-01-02T03:04:05.678Z"}
    values = [{**each["value"], "original_width": 60, "original_height": 40} for each in drawn]
    empty = {"image": "/data/upload/1/0a1b2c3d-two.png", "id": 6, **facts}
    task = {"image": "/data/upload/1/0a1b2c3d-one.png", "id": 5, "label": values, **facts}
    (root / "project-1.json").write_text(json.dumps([task, empty]))
    assert sniff(root) == ["label_studio"]
    data = read(root)
    assert not data.problems
    short, nothing = data.splits["all"]
    np.testing.assert_array_equal(masks_of(short), masks_of(long))
    assert nothing["annotations"] == []

    (root / "project-1.json").write_text(json.dumps([empty] * 20 + [task]))  # the first do not show what was drawn
    assert sniff(root) == ["label_studio"]

    task["label"][0].pop("points")
    (root / "project-1.json").write_text(json.dumps([task, {"id": 9}]))
    problems = read(root).problems
    assert any("task 9: it is no task of Label Studio" in problem for problem in problems)


def test_further_controls_and_relations_of_a_region_are_no_objects(tmp_path):
    """Each control of a region repeats its geometry."""
    choice = result({"points": POINTS, "choices": ["large"]}, "choices", label=None)
    relation = {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"}
    other = result({"points": [[60, 10], [80, 10], [80, 50]]}, number="b")
    for entries in ([result(), choice, relation, other], [result(label=None), result(), other]):
        record, data = read_one(write(tmp_path, *entries))
        assert len(record["annotations"]) == 2
        assert data.problems == []


def test_an_image_of_regions_that_nobody_labelled_is_no_negative(tmp_path):
    with pytest.raises(DataError, match=r"an object without label \(1\)"):
        read(write(tmp_path, result(label=None)))


@pytest.mark.parametrize("kind", ["keypointlabels", "keypoint"])
def test_key_points_have_a_width_and_are_no_boxes(tmp_path, kind):
    point = result({"x": 49.6, "y": 52.3, "width": 0.66}, kind, number="b")
    record, data = read_one(write(tmp_path, result(), point))
    assert len(record["annotations"]) == 1
    assert not data.problems
    assert any("a point" in note for note in data.notes)
