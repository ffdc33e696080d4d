"""A checkpoint knows images by name and size, wherever they lie, also those of the weights that it began from."""

import os

import pytest
import torch

from maskrcnn_plus.data.learned_images import EARLIER, KEYS, image_key, image_keys, read_learned
from maskrcnn_plus.weights.conversion import WeightsError


@pytest.fixture
def records(tmp_path):
    """Five files of different sizes, of which the last two have one name."""
    found = []
    for index, name in enumerate(("a/1.png", "a/2.png", "a/3.png", "a/4.png", "b/4.png")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(10 + index))
        found.append({"file_name": str(path)})
    return found


def save(path, data):
    torch.save({"model": {}, "description": {"data": data}}, path)
    return str(path)


def test_images_are_known_by_name_and_size(records, tmp_path):
    first, second, third, fourth, _ = records
    train = {KEYS: image_keys([first, first, fourth]), EARLIER: image_keys([second])}
    known = read_learned(save(tmp_path / "w.pth", {"train": train, "test": {KEYS: image_keys([second, third])}}))
    of = [known.get(image_key(record)) for record in records]
    assert of == ["train", "train", "val", "train", None]
    moved = tmp_path / "moved" / "1.png"
    moved.parent.mkdir()
    moved.write_bytes((tmp_path / "a/1.png").read_bytes())
    assert known[image_key({"file_name": str(moved)})] == "train"


def test_a_name_that_is_no_utf8_has_a_key_and_a_file_that_is_written_anew_is_read_anew(records, tmp_path):
    (tmp_path / os.fsdecode(b"zelle_\xe4.png")).write_bytes(b"1")
    record = {"file_name": str(tmp_path / os.fsdecode(b"zelle_\xe4.png"))}
    known = read_learned(save(tmp_path / "w.pth", {"train": {KEYS: image_keys([record])}}))
    assert known == {image_key(record): "train"}
    known.clear()  # one's own
    assert read_learned(tmp_path / "w.pth") == {image_key(record): "train"}
    more = save(tmp_path / "w.pth", {"train": {KEYS: image_keys([record, *records])}})
    assert len(read_learned(more)) == 6


@pytest.mark.parametrize("data", [None, [], {"train": 3}, {"train": {KEYS: 5}}, {"train": {KEYS: ""}}, {}])
def test_other_checkpoints_know_none(data, tmp_path):
    assert read_learned(save(tmp_path / "w.pth", data)) == {}


def test_no_file_knows_none_and_a_damaged_one_is_named(tmp_path):
    assert read_learned(None) == read_learned(str(tmp_path)) == read_learned("maskrcnn_plus://nuclei") == {}
    (tmp_path / "w.pth").write_bytes(b"PK\3\4 no")
    with pytest.raises(WeightsError, match=r"w\.pth"):
        read_learned(tmp_path / "w.pth")
