"""Folders with what a tool wrote and what was converted from it."""

import json

import pytest
from annotation_folders import HEIGHT, WIDTH, write_image

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats import read, sniff

OUTLINE = [[6, 4], [30, 4], [30, 20], [6, 20]]


def write_labelme(root, names):
    for name in names:
        write_image(root / f"{name}.png")
        shapes = [{"label": "cell", "shape_type": "polygon", "points": OUTLINE}]
        (root / f"{name}.json").write_text(json.dumps({"shapes": shapes, "imagePath": f"{name}.png"}))


def write_coco(file, folder, names, segmentation=([6, 4, 30, 4, 30, 20, 6, 20],)):
    for name in names:
        write_image(folder / f"{name}.png")
    images = [{"id": k, "file_name": f"{name}.png", "height": HEIGHT, "width": WIDTH} for k, name in enumerate(names)]
    entry = {"category_id": 1, "bbox": [6, 4, 24, 16], "segmentation": list(segmentation)}
    annotations = [{**entry, "id": k, "image_id": k} for k, _ in enumerate(names)]
    categories = [{"id": 1, "name": "cell"}]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def test_splits_of_a_derived_file_are_taken(tmp_path):
    write_labelme(tmp_path, ["a", "b"])
    write_coco(tmp_path / "coco" / "train.json", tmp_path, ["a"])
    write_coco(tmp_path / "coco" / "val.json", tmp_path, ["b"])
    assert sniff(tmp_path) == ["coco", "labelme"]
    data = read(tmp_path)
    assert (data.format, set(data.splits)) == ("coco", {"train", "val"})
    assert any("coco: 2 images with 2 objects; labelme: 2 images with 2 objects" in note for note in data.notes)
    assert read(tmp_path, "labelme").format == "labelme"


def test_the_one_that_has_all_images_is_taken(tmp_path):
    write_labelme(tmp_path / "drawn", ["a", "b"])
    write_coco(tmp_path / "export" / "all.json", tmp_path / "export", ["a"])
    assert read(tmp_path).format == "labelme"


def test_different_images_are_a_question(tmp_path):
    write_labelme(tmp_path / "drawn", ["a", "b"])
    write_coco(tmp_path / "export" / "all.json", tmp_path / "export", ["c"])
    with pytest.raises(DataError, match=r"coco: 1 images .*labelme: 2 images .*--format"):
        read(tmp_path)


def test_a_list_of_classes_beside_another_format(tmp_path):
    write_coco(tmp_path / "train" / "_annotations.coco.json", tmp_path / "train", ["a"])
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnames: [cell]\n")
    data = read(tmp_path)
    assert data.format == "coco"
    assert [len(each["annotations"]) for each in data.splits["train"]] == [1]


def test_none_that_can_be_used_names_all_reasons(tmp_path):
    write_coco(tmp_path / "coco.json", tmp_path, ["a"], segmentation=())
    (tmp_path / "classes.txt").write_text("cell\n")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=r"(?s)coco: .*no object has a mask.*yolo: .*no object has a mask"):
        read(tmp_path)
