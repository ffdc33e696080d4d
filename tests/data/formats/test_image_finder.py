"""Images that annotation files name in the ways of other machines, or that are not there."""

import unicodedata

import numpy as np
import pytest
from annotation_folders import write_image
from PIL import Image

from maskrcnn_plus.data.formats.annotated import Annotated, ImageFinder


def find(root, name, beside="one.json"):
    data = Annotated()
    return ImageFinder(root, data).find(name, root / beside), data


@pytest.mark.parametrize(
    "name",
    [
        "images/a b.png",
        "a b.png",
        "C:\\Users\\me\\a b.png",
        "/home/me/elsewhere/a b.png",
        "../../a b.png",
        "https://host/x/a%20b.png?token=1",
        "file:///data/a%20b.png",
        "/data/local-files/?d=x%2Fa%20b.png",
        "0123abcd-a b.png",
        "https://host/upload/0123abcd-a%20b.png",
    ],
)
def test_names_of_other_machines(tmp_path, name):
    image = write_image(tmp_path / "images" / "a b.png")
    (tmp_path / "images" / "._a b.png").write_bytes(b"\0\5\x16\7")
    found, data = find(tmp_path, name)
    assert found == image
    assert not data.missing


def test_another_extension_is_said(tmp_path):
    image = write_image(tmp_path / "images" / "a.png")
    found, data = find(tmp_path, "a.jpg")
    data.finish(tmp_path)
    assert found == image
    assert any("another extension" in note and "a.jpg" in note for note in data.notes)


def test_other_capitals_are_said_and_those_as_written_come_first(tmp_path):
    """A disk of Windows or a Mac takes them for one."""
    write_image(tmp_path / "IMG_1.JPG")
    found, data = find(tmp_path, "img_1.jpg")
    data.finish(tmp_path)
    assert found == tmp_path / "IMG_1.JPG"
    assert any("other capitals" in note for note in data.notes)
    assert ImageFinder(tmp_path, Annotated()).find_stem("Img_1", tmp_path) == tmp_path / "IMG_1.JPG"
    write_image(tmp_path / "a" / "img_1.png")
    assert find(tmp_path, "img_1.jpg")[0] == tmp_path / "a" / "img_1.png"
    write_image(tmp_path / "a" / "Img_1.png")
    assert find(tmp_path, "iMG_1.jpg")[0] is None


def test_pictures_of_labels_with_the_names_of_images(tmp_path):
    image = write_image(tmp_path / "train_images" / "a.png", 10)
    write_image(tmp_path / "train_masks" / "a.png", 20)
    write_image(tmp_path / "others" / "a.png", 30)
    found, data = find(tmp_path, "a.png")
    assert found == image
    assert not data.problems


def test_of_several_files_that_with_the_same_folders(tmp_path):
    write_image(tmp_path / "one" / "images" / "a.png", 10)
    image = write_image(tmp_path / "two" / "images" / "a.png", 20)
    assert find(tmp_path, "D:/data/two/images/a.png")[0] == image


def test_of_several_files_that_with_more_of_the_folders(tmp_path):
    write_image(tmp_path / "colour" / "test" / "a.png", 10)
    image = write_image(tmp_path / "grey" / "test" / "a.png", 20)
    assert find(tmp_path, "grey/train/a.png")[0] == image


def test_equal_files_are_one_and_others_are_named(tmp_path):
    image = write_image(tmp_path / "one" / "a.png")
    write_image(tmp_path / "two" / "a.png")
    found, data = find(tmp_path, "a.png")
    data.finish(tmp_path)
    assert found == image
    assert any("same content" in note for note in data.notes)
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / "two" / "a.png")
    found, data = find(tmp_path, "a.png")
    assert found is None
    assert "2 files that differ" in data.problems[0]


@pytest.mark.parametrize("name", ["", ".", "..", "/", "\0", "x" * 5000, "http://[", "a?d=%00"])
def test_names_that_no_file_has(tmp_path, name):
    write_image(tmp_path / "images" / "a.png")
    found, data = find(tmp_path, name)
    assert found is None
    assert data.missing == [name]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_folders_of_a_mac_tell_images_apart(tmp_path, form):
    folder = unicodedata.normalize("NFD", "Zähler")
    for number, place in enumerate((folder, "other")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "0001.png").write_bytes(b"%d" % number)
    data = Annotated()
    name = unicodedata.normalize(form, "C:\\data\\Zähler\\0001.png")
    assert ImageFinder(tmp_path, data).find(name, tmp_path / "a.json") == tmp_path / folder / "0001.png"
    assert data.problems == []


def test_of_several_files_that_of_the_stated_size(tmp_path):
    write_image(tmp_path / "originals" / "one.png", 80, 120)
    small = write_image(tmp_path / "resized" / "one.png", 40, 60)
    data = Annotated()
    assert ImageFinder(tmp_path, data).find("one.png", tmp_path / "one.json", size=(40, 60)) == small
    assert not data.problems
