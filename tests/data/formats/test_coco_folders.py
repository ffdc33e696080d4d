"""Folders of COCO files: splits, images beside the file, classes by name."""

import json
from pathlib import Path

import pytest
from annotation_folders import write_image

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats import read, sniff

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "formats" / "veins_roboflow"
GROUP = {"id": 0, "name": "things", "supercategory": "none"}
CELL = {"id": 1, "name": "cell", "supercategory": "things"}
DUST = {"id": 2, "name": "dust", "supercategory": "things"}


def write(file, image, categories, category_id, name=None):
    write_image(image)
    file.parent.mkdir(parents=True, exist_ok=True)
    entry = {"id": 0, "image_id": 0, "category_id": category_id, "bbox": [6, 4, 24, 16], "iscrowd": 0}
    entry["segmentation"] = [[6, 4, 30, 4, 30, 20, 6, 20]]
    images = [{"id": 0, "file_name": name or image.name, "height": 40, "width": 60}]
    file.write_text(json.dumps({"images": images, "annotations": [entry], "categories": categories}))


def test_splits_with_the_file_beside_the_images(tmp_path):
    write(tmp_path / "train" / "_annotations.coco.json", tmp_path / "train" / "a.png", [GROUP, CELL, DUST], 1)
    write(tmp_path / "valid" / "_annotations.coco.json", tmp_path / "valid" / "b.png", [GROUP, DUST, CELL], 2)
    (tmp_path / "train" / "._annotations.coco.json").write_bytes(b"\0\5\x16\7")
    (tmp_path / "train" / "._a.png").write_bytes(b"\0\5\x16\7")
    data = read(tmp_path)
    assert sniff(tmp_path) == "coco"
    assert data.class_names == ["cell", "dust"]
    assert {split: [each["annotations"][0]["category_id"] for each in data.splits[split]] for split in data.splits} == {
        "train": [0],
        "val": [1],
    }
    assert any("'things'" in note for note in data.notes)


def test_files_in_annotations_and_images_elsewhere(tmp_path):
    for split in ("train", "val"):
        file = tmp_path / "annotations" / f"instances_{split}2017.json"
        write(file, tmp_path / "pictures" / f"{split}.png", [CELL], 1, name=f"D:\\mine\\{split}.png")
    data = read(tmp_path)
    files = {split: [Path(each["file_name"]).name for each in records] for split, records in data.splits.items()}
    assert files == {"train": ["train.png"], "val": ["val.png"]}
    assert all(Path(each["file_name"]).is_file() for records in data.splits.values() for each in records)


def test_an_image_in_two_files_is_refused(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / f"{split}.json", tmp_path / "a.png", [CELL], 1)
    with pytest.raises(DataError, match="annotated twice"):
        read(tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="the folder is not there")
def test_a_real_folder():
    data = read(REAL)
    assert data.class_names == ["vein", "midrib"]
    assert {split: sum(len(each["annotations"]) for each in data.splits[split]) for split in data.splits} == {
        "train": 20,
        "val": 19,
        "test": 18,
    }
    assert sum("taken as one" in note for note in data.notes) == 3
