"""The annotations of one COCO file: what is left out, counted, or taken otherwise than it stands there."""

import json
from pathlib import Path

import pytest
from annotation_folders import write_image

from maskrcnn_plus.data.check import DataError, check_dataset
from maskrcnn_plus.data.formats import ReadOptions, read

CELL = {"id": 1, "name": "cell", "supercategory": "things"}
DUST = {"id": 2, "name": "dust", "supercategory": "things"}
GROUP = {"id": 0, "name": "things", "supercategory": "none"}


def write_entries(root, entries, images=("a.png",), categories=(CELL,), **further):
    """A COCO file with annotations of images that are all there."""
    for name in images:
        write_image(root / name)
    listed = [{"id": k, "file_name": name, "height": 40, "width": 60, **further} for k, name in enumerate(images)]
    content = {"images": listed, "annotations": list(entries), "categories": list(categories)}
    (root / "a.json").write_text(json.dumps(content))
    return root


def entry(number, category_id=1, **further):
    x = 2 + 9 * (number % 6)
    polygon = [x, 4, x + 6, 4, x + 6, 20, x, 20]
    content = {"id": number, "image_id": 0, "category_id": category_id, "bbox": [x, 4, 6, 16], "iscrowd": 0}
    return {**content, "segmentation": [polygon], **further}


def test_an_image_of_boxes_alone_is_not_one_without_objects(tmp_path):
    mask = {"id": 0, "image_id": 0, "category_id": 1, "bbox": [6, 4, 24, 16], "segmentation": [[6, 4, 30, 4, 30, 20]]}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [6, 4, 24, 16], "segmentation": []}
    write_entries(tmp_path, [mask, box], images=("a.png", "b.png", "empty.png"))
    data = read(tmp_path)
    assert [Path(each["file_name"]).name for each in data.splits["all"]] == ["a.png", "empty.png"]
    assert any("every object is a box" in note and "b.png" in note for note in data.notes)


def test_an_empty_box_of_a_mask_is_taken_from_it(tmp_path):
    entry = {"id": 0, "image_id": 0, "category_id": 1, "bbox": [6, 4, 0, 16], "segmentation": [[6, 4, 30, 4, 30, 20]]}
    write_entries(tmp_path, [entry])
    (record,) = check_dataset(read(tmp_path).splits["all"])
    assert record["annotations"][0]["bbox"] == [6, 4, 24, 16]


def test_boxes_and_slips_are_left_out_beside_masks_and_refused_alone(tmp_path):
    slips = [
        entry(1, segmentation=[]),
        entry(2, segmentation=[[]]),
        entry(3, segmentation=[[1, 2, 3, 4]]),
        entry(4, segmentation=[[1, 2], *entry(4)["segmentation"]]),
    ]
    data = read(write_entries(tmp_path, [entry(0), *slips]))
    assert [each["id"] for each in data.splits["all"][0]["annotations"]] == [0, 4]
    assert any("a box (2: " in note and "annotation 1" in note for note in data.notes)
    assert any("a polygon of 2 points (1: " in note for note in data.notes)
    with pytest.raises(DataError, match=r"no object has a mask. There are: a box \(2\)"):
        read(write_entries(tmp_path, slips[:2]))


def test_values_of_several_attributes_as_categories(tmp_path):
    kinds = [{"id": k, "name": f"kind {k}", "supercategory": "kind"} for k in (1, 2)]
    ages = [{"id": k, "name": f"age {k}", "supercategory": "age"} for k in (3, 4)]
    entries = [entry(k, category, id=10 * k + category) for k in range(4) for category in (1 + k % 2, 3 + k % 2)]
    write_entries(tmp_path, [*entries, entry(5, 2)], categories=[*kinds, *ages])
    data = read(tmp_path)
    assert data.class_names == ["kind 1", "kind 2"]
    assert len(data.splits["all"][0]["annotations"]) == 5
    assert any("'kind' names the class" in note for note in data.notes)
    data = read(tmp_path, options=ReadOptions(attribute="age"))
    assert data.class_names == ["age 3", "age 4"]
    assert len(data.splits["all"][0]["annotations"]) == 4
    with pytest.raises(DataError, match=r"'agee'. Did you mean 'age'"):
        read(tmp_path, options=ReadOptions(attribute="agee"))


def test_a_value_of_the_attributes_of_annotations_names_the_class(tmp_path):
    entries = [entry(0, attributes={"kind": "NA"}), entry(1, attributes={"kind": "b", "occluded": False}), entry(2)]
    data = read(write_entries(tmp_path, entries), options=ReadOptions(attribute="kind"))
    assert data.class_names == ["NA", "b"]
    assert "annotation 2: it has no attribute 'kind'" in data.problems[0]
    assert read(tmp_path).class_names == ["cell"]


def test_an_annotation_that_is_there_twice_is_taken_once(tmp_path):
    data = read(write_entries(tmp_path, [entry(0), entry(0, id=7), entry(1)]))
    assert [each["id"] for each in data.splits["all"][0]["annotations"]] == [0, 1]
    assert any("there twice" in note for note in data.notes)


def test_two_categories_of_one_name_are_one_and_na_is_a_class(tmp_path):
    categories = [{"id": 1, "name": "NA"}, {"id": 2, "name": "NA"}, {"id": 3, "name": "no"}]
    data = read(write_entries(tmp_path, [entry(0), entry(1, 2), entry(2, 3)], categories=categories))
    assert data.class_names == ["NA", "no"]
    assert [each["category_id"] for each in data.splits["all"][0]["annotations"]] == [0, 0, 1]


def test_images_that_are_not_there_are_counted(tmp_path):
    names = [f"{k}.png" for k in range(71)]
    write_entries(tmp_path, [entry(k, image_id=k) for k in range(71)], images=names)
    for name in names[:48]:
        (tmp_path / name).unlink()
    data = read(tmp_path)
    assert len(data.splits["all"]) == 23
    assert len(data.problems) == 1
    assert "48 of 71 images that are annotated are not there" in data.problems[0]
    assert "--on-error skip" in data.problems[0]


@pytest.mark.parametrize("name", ["https://host/x/a%20b.png", "x/y/a b.png", "x\\a b.png", "0123abcd-a b.png"])
def test_file_names_of_other_machines(tmp_path, name):
    write_entries(tmp_path, [entry(0)], images=["a b.png"], file_name=name)
    data = read(tmp_path)
    assert data.splits["all"][0]["file_name"] == str(tmp_path / "a b.png")
    assert not data.problems


@pytest.mark.parametrize(("count", "said"), [(19, False), (20, True)])
def test_masks_that_may_be_boxes_are_said(tmp_path, count, said):
    data = read(write_entries(tmp_path, [entry(0, id=k, bbox=[2, 4, 6, 16 + k]) for k in range(count)]))
    assert any("upright rectangles" in note for note in data.notes) == said
    slanted = entry(30, segmentation=[[2, 4, 9, 5, 8, 20]])
    data = read(write_entries(tmp_path, [*(entry(0, id=k, bbox=[2, 4, 6, 16 + k]) for k in range(count)), slanted]))
    assert not any("upright rectangles" in note for note in data.notes)


def test_nan_is_named(tmp_path):
    bad = entry(1, segmentation=[[float("nan"), 4, 9, 4, 9, 9]])
    data = read(write_entries(tmp_path, [entry(0), bad]))
    with pytest.raises(DataError, match="not finite"):
        check_dataset(data.splits["all"])
