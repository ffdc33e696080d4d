"""Folders of any format as registered data sets: classes by name, splits, and what is left out is said."""

import json

import numpy as np
import pytest
import tifffile
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.folder import load_folder, register_folder
from maskrcnn_plus.data.formats import coco as coco_format
from maskrcnn_plus.data.limits import pixel_limit, reading_by_parts


@pytest.fixture(autouse=True)
def _unregister():
    coco_format._said.clear()
    yield
    for name in ("folder_train", "folder_val"):
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog:
                catalog.remove(name)


@pytest.fixture
def folder(tmp_path):
    """LabelMe files of ten images: a cat in each, a dog in the first six, a bird in one."""
    for index in range(10):
        pixels = np.random.default_rng(index).integers(0, 255, (5, 7, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        names = ["cat"] + ["Dog"] * (index < 6) + ["bird"] * (index == 3)
        shapes = [
            {"label": name, "shape_type": "polygon", "points": [[5 * k, 5], [5 * k + 4, 5], [5 * k + 4, 20]]}
            for k, name in enumerate(names)
        ]
        content = {"version": "5", "shapes": shapes, "imagePath": f"{index}.png", "imageData": None}
        (tmp_path / f"{index}.json").write_text(json.dumps(content))
    return tmp_path


def counts(records):
    """Objects by category."""
    found = [each["category_id"] for record in records for each in record["annotations"]]
    return {category: found.count(category) for category in set(found)}


def test_both_splits_hold_all_images_once_and_all_classes(folder):
    train = DatasetCatalog.get(register_folder("folder_train", str(folder), "train"))
    val = DatasetCatalog.get(register_folder("folder_val", str(folder), "val"))
    assert sorted(record["file_name"] for record in train + val) == sorted(map(str, folder.glob("*.png")))
    assert counts(train + val) == {0: 10, 1: 6, 2: 1}
    assert MetadataCatalog.get("folder_train").thing_classes == ["cat", "Dog", "bird"]


def test_classes_are_matched_by_name_and_others_left_out(folder, caplog):
    name = register_folder("folder_train", str(folder), thing_classes=["dog", "cat"], val=0)
    assert counts(DatasetCatalog.get(name)) == {0: 6, 1: 10}
    assert "left out: bird (1)" in caplog.text


def test_images_are_marked_with_their_kinds_where_it_is_asked_for(folder):
    for index in range(3):
        pixels = np.full((40, 56), 20, np.uint8)
        pixels[5:21, :5] = 200  # the cat
        Image.fromarray(pixels if index else np.dstack([255 - pixels, pixels, pixels])).save(folder / f"{index}.png")
    name = register_folder("folder_train", str(folder), val=0, kinds=True, thing_classes=["cat"])
    kinds = {record["file_name"][-5]: record["kind"] for record in DatasetCatalog.get(name)}
    assert {kinds["1"], kinds["2"]} == {"grey, dark background"}
    assert all("coloured" in kind for index, kind in kinds.items() if index not in "12")
    assert "kind" not in DatasetCatalog.get(register_folder("folder_val", str(folder), "train", val=0))[0]


def test_a_name_that_no_object_has_is_refused_with_the_nearest(folder):
    name = register_folder("folder_train", str(folder), thing_classes=["brid"], val=0)
    with pytest.raises(DataError, match=r"no object of brid.*Did you mean bird"):
        DatasetCatalog.get(name)


def test_a_changed_folder_is_read_again(folder):
    assert len(load_folder(folder, val=0).splits["train"]) == 10
    (folder / "0.json").unlink()
    (folder / "0.png").unlink()
    assert len(load_folder(folder, val=0).splits["train"]) == 9


def test_where_no_image_is_left_the_reasons_are_told(folder):
    for image in folder.glob("*.png"):
        image.unlink()
    with pytest.raises(DataError, match=r"10 of 10 images that are annotated are not there"):
        load_folder(folder)


def test_what_is_loaded_belongs_to_the_caller(folder):
    load_folder(folder, val=0).splits["train"].clear()
    assert len(load_folder(folder, val=0).splits["train"]) == 10


def test_a_missing_split_is_named(folder):
    with pytest.raises(DataError, match=r"'folder_val'.*no images of the split val, only train"):
        DatasetCatalog.get(register_folder("folder_val", str(folder), "val", val=0))


def test_bad_images_are_errors_or_left_out(folder):
    (folder / "4.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"4\.png"):
        DatasetCatalog.get(register_folder("folder_train", str(folder), val=0))
    name = register_folder("folder_val", str(folder), "train", val=0, on_error="skip")
    assert len(DatasetCatalog.get(name)) == 9


def test_weights_that_the_split_is_of_must_be_there(folder, tmp_path):
    with pytest.raises(DataError, match=r"dataset\.split_of is .*gone\.pth, which is no file"):
        load_folder(folder, split_of=str(tmp_path / "gone.pth"))


def test_an_unknown_option_is_refused_at_once(folder):
    with pytest.raises(TypeError, match="colour"):
        register_folder("folder_train", str(folder), colour="red")


def test_the_only_class_takes_the_name_that_is_given(folder, caplog):
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        content["shapes"] = content["shapes"][:1]
        path.write_text(json.dumps(content))
    name = register_folder("folder_train", str(folder), thing_classes=["animal"], val=0)
    assert counts(DatasetCatalog.get(name)) == {0: 10}
    assert "its only class with objects, cat, is taken for animal" in caplog.text


def test_what_was_read_by_parts_is_read_again_where_images_are_decoded_at_once(folder):
    tifffile.imwrite(folder / "large.tif", np.zeros((200, 200), np.uint8), tile=(16, 16))
    content = json.loads((folder / "0.json").read_text()) | {"imagePath": "large.tif"}
    (folder / "0.json").write_text(json.dumps(content))
    with pixel_limit(10_000):
        with reading_by_parts():
            assert load_folder(folder).problems == []
        [problem] = load_folder(folder).problems
    assert "large.tif: 200 x 200 pixels" in problem
