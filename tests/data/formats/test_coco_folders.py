"""Folders of COCO files: splits, images beside the file, classes by name."""

import json
import unicodedata
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
    assert sniff(tmp_path) == ["coco"]
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


def test_an_image_of_two_splits_is_of_the_first(tmp_path):
    for split in ("val", "train"):
        write(tmp_path / f"{split}.json", tmp_path / "a.png", [CELL], 1)
    write(tmp_path / "val2.json", tmp_path / "b.png", [CELL], 1)
    data = read(tmp_path)
    assert {split: [Path(each["file_name"]).name for each in data.splits[split]] for split in data.splits} == {
        "train": ["a.png"],
        "val": ["b.png"],
    }
    assert any("several splits" in note and "a.png" in note for note in data.notes)


def test_two_files_of_one_split(tmp_path):
    write(tmp_path / "one.json", tmp_path / "a.png", [CELL], 1)
    write(tmp_path / "two.json", tmp_path / "a.png", [CELL], 1)
    data = read(tmp_path)
    assert [len(each["annotations"]) for each in data.splits["all"]] == [1]
    assert any("taken once" in note for note in data.notes)
    content = json.loads((tmp_path / "two.json").read_text())
    content["annotations"][0]["segmentation"] = [[6, 4, 30, 4, 30, 20]]
    (tmp_path / "two.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"annotated twice.*Give one of the files"):
        read(tmp_path)


def test_files_beside_the_instances_of_the_coco_download(tmp_path):
    write(tmp_path / "annotations" / "instances_train2017.json", tmp_path / "train2017" / "a.png", [CELL], 1)
    for other in ("captions", "person_keypoints", "stuff"):
        write(tmp_path / "annotations" / f"{other}_train2017.json", tmp_path / "train2017" / "a.png", [DUST], 2)
    data = read(tmp_path)
    assert data.class_names == ["cell"]
    assert [len(each["annotations"]) for each in data.splits["train"]] == [1]


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


def test_images_in_a_folder_of_the_split_with_the_file_beside_it(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / split / "labels.json", tmp_path / split / "images" / "a.png", [CELL], 1)
    data = read(tmp_path)
    files = {split: [each["file_name"] for each in records] for split, records in data.splits.items()}
    assert files == {split: [str(tmp_path / split / "images" / "a.png")] for split in ("train", "val")}


def test_files_in_annotations_and_images_of_one_name_in_folders_of_splits(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / "annotations" / f"{split}.json", tmp_path / "images" / split / "a.png", [CELL], 1)
    data = read(tmp_path)
    files = {split: [each["file_name"] for each in records] for split, records in data.splits.items()}
    assert files == {split: [str(tmp_path / "images" / split / "a.png")] for split in ("train", "val")}


def test_a_split_named_test_alone(tmp_path):
    write(tmp_path / "test" / "_annotations.coco.json", tmp_path / "test" / "a.png", [CELL], 1)
    assert list(read(tmp_path).splits) == ["test"]


@pytest.mark.parametrize(
    ("right", "wrong", "file", "name"),
    [
        ("images", "annotated", "labels.json", "0001.png"),
        ("rgb", "masks", "labels.json", "0001.png"),
        ("images", "depth", "labels.json", "0001.png"),
        ("images", "images_augmented", "labels.json", "0001.png"),
        ("images/patient2", "images/patient1", "annotations/patient2.json", "0001.png"),
        ("data/plate2", "data/plate1", "labels.json", "C:\\data\\plate2\\0001.png"),
        ("images_2022", "images_2023", "labels_2022.json", "0001.png"),
    ],
)
def test_of_folders_with_the_same_names_the_likeliest_is_taken(tmp_path, right, wrong, file, name):
    write(tmp_path / file, tmp_path / right / "0001.png", [CELL], 1, name=name)
    write_image(tmp_path / wrong / "0001.png")
    (tmp_path / wrong / "0001.png").write_bytes((tmp_path / right / "0001.png").read_bytes() + b"other")
    (record,) = read(tmp_path).splits["all"]
    assert record["file_name"] == str(tmp_path / right / "0001.png")


def test_folders_that_nothing_tells_apart_are_named(tmp_path):
    for folder in ("one", "two"):
        write(tmp_path / "labels.json", tmp_path / folder / "0001.png", [CELL], 1)
    assert len(read(tmp_path).splits["all"]) == 1  # the same image twice
    with open(tmp_path / "two" / "0001.png", "ab") as image:
        image.write(b"other")
    data = read(tmp_path)
    assert not data.splits["all"]
    assert any("0001.png may be any of 2 files that differ" in problem for problem in data.problems)


@pytest.mark.parametrize("above", ["", "images"])
@pytest.mark.parametrize("machine", ["", "C:\\\\data\\\\"])
def test_images_in_folders_that_their_names_say_are_each_their_own(tmp_path, above, machine):
    """Also where one of the folders has all the last parts of the names."""
    entries, images = [], []
    for number, name in enumerate(("patient2/0001.png", "patient1/0001.png", "patient1/0002.png")):
        write_image(tmp_path / above / name)
        with open(tmp_path / above / name, "ab") as image:
            image.write(b"%d" % number)
        images.append({"id": number, "file_name": machine + name, "height": 40, "width": 60})
        box = {"bbox": [number, 1, 8, 8], "segmentation": [[number, 1, number + 8, 1, number + 8, 9]], "iscrowd": 0}
        entries.append({"id": number, "image_id": number, "category_id": 1, **box})
    content = {"images": images, "annotations": entries, "categories": [CELL]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "all.json").write_text(json.dumps(content))
    found = {str(Path(each["file_name"]).relative_to(tmp_path / above)): each for each in read(tmp_path).splits["all"]}
    assert {name: each["annotations"][0]["bbox"][0] for name, each in found.items()} == {
        "patient2/0001.png": 0,
        "patient1/0001.png": 1,
        "patient1/0002.png": 2,
    }


def test_a_name_that_no_file_can_have_is_found_by_its_address(tmp_path):
    address = f"https://host/a.png?X-Amz-Signature={'0' * 400}"
    write(tmp_path / "labels.json", tmp_path / "pictures" / "a.png", [CELL], 1, name=address)
    (record,) = read(tmp_path).splits["all"]
    assert record["file_name"] == str(tmp_path / "pictures" / "a.png")


def test_names_of_a_mac_are_those_of_other_machines(tmp_path):
    """macOS writes a letter and its accent as two characters."""
    one, two = unicodedata.normalize("NFD", "zäh.png"), unicodedata.normalize("NFC", "zäh.png")
    write(tmp_path / "labels.json", tmp_path / "pictures" / one, [CELL], 1, name=two)
    assert [Path(record["file_name"]).name for record in read(tmp_path).splits["all"]] == [one]


def test_links_to_folders_are_followed_and_end(tmp_path):
    for split in ("train", "val"):
        place = tmp_path / ("store" if split == "val" else "data") / split
        write(place / "_annotations.coco.json", place / f"{split}.png", [CELL], 1)
    (tmp_path / "data" / "val").symlink_to(tmp_path / "store" / "val")
    (tmp_path / "data" / "train" / "round").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data" / "train")  # before it in the order of names
    (tmp_path / "store" / "val" / "round").symlink_to(tmp_path / "store")
    data = read(tmp_path / "data")
    assert {split: len(records) for split, records in data.splits.items()} == {"train": 1, "val": 1}


def test_a_file_whose_size_does_not_fit_keeps_no_other_from_an_image(tmp_path):
    write(tmp_path / "a_old.json", tmp_path / "images" / "a.png", [CELL], 1)
    content = json.loads((tmp_path / "a_old.json").read_text())
    (tmp_path / "b_new.json").write_text(json.dumps(content))
    content["images"][0].update(height=97, width=61)
    content["annotations"][0]["segmentation"] = [[6, 4, 30, 4, 30, 90, 6, 90]]
    (tmp_path / "a_old.json").write_text(json.dumps(content))
    data = read(tmp_path)
    (record,) = (each for records in data.splits.values() for each in records)
    assert len(record["annotations"]) == 1
    assert ["a_old.json" in problem for problem in data.problems] == [True]


@pytest.mark.parametrize("folders", [("a", "b"), ("images", "b"), ("b", "images")])
def test_of_folders_with_the_same_names_that_with_the_stated_sizes_is_taken(tmp_path, folders):
    write(tmp_path / "all.json", tmp_path / folders[1] / "a.png", [CELL], 1)
    write_image(tmp_path / folders[0] / "a.png", 70, 60)
    data = read(tmp_path)
    assert [record["file_name"] for record in data.splits["all"]] == [str(tmp_path / folders[1] / "a.png")]
    assert not data.problems


def test_an_image_of_another_size_whose_objects_cannot_be_used_is_no_negative(tmp_path):
    write(tmp_path / "a.json", tmp_path / "a.png", [CELL], 1)
    content = json.loads((tmp_path / "a.json").read_text())
    content["images"][0].update(height=80, width=120)
    content["annotations"][0]["segmentation"] = {"size": [80, 120], "counts": "?"}
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = read(tmp_path)
    assert not any(data.splits.values())
    assert len(data.problems) == 1


def test_an_image_without_objects_is_not_taken_for_one_of_its_name_whose_objects_cannot_be_used(tmp_path):
    write(tmp_path / "all.json", tmp_path / "a" / "1.png", [CELL], 1, name="a/1.png")
    write_image(tmp_path / "b" / "1.png")
    content = json.loads((tmp_path / "all.json").read_text())
    content["images"].append({**content["images"][0], "id": 1, "file_name": "b/1.png"})
    for image in content["images"]:
        image.update(height=80, width=120)
    content["annotations"][0]["segmentation"] = {"size": [80, 120], "counts": "?"}
    (tmp_path / "all.json").write_text(json.dumps(content))
    data = read(tmp_path)
    kept = [(record["file_name"], record["annotations"]) for record in data.splits["all"]]
    assert kept == [(str(tmp_path / "b" / "1.png"), [])]
