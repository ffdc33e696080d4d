"""Safetensors files: what a checkpoint says of itself, what others write there, and what must not be believed."""

import json
import struct

import pytest
import safetensors.torch
import torch

from maskrcnn_plus.checkpoints import WeightsError, load_weights, read_classes
from maskrcnn_plus.weights.files import ABOUT, read_file, read_weights


def write(path, metadata):
    """A file of one tensor."""
    safetensors.torch.save_file({"fc.weight": torch.ones(2, 3).half()}, path, metadata)
    return str(path)


def test_what_a_checkpoint_has_beside_its_tensors_comes_back(tmp_path):
    about = {"class_names": ["cell", "noyau é"], "category_ids": [1, 7], "description": {"version": 1, "config": {}}}
    path = write(tmp_path / "w.safetensors", {"format": "pt", ABOUT: json.dumps(about)})
    content = read_file(path)
    assert {key: content[key] for key in about} == about
    assert content["format"] == "pt"
    assert ABOUT not in content
    assert read_weights(path).metadata == {"format": "pt", **about}
    assert read_classes(path) == (about["class_names"], about["category_ids"])


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"description": "prose", "class_names": "cat, dog"}])
def test_files_of_others_are_weights_without_a_description(tmp_path, metadata):
    path = write(tmp_path / "w.safetensors", metadata)
    assert read_classes(path) is None
    model = torch.nn.Sequential()
    model.add_module("fc", torch.nn.Linear(3, 2, bias=False))
    assert load_weights(model, path, strict=True).fraction == 1
    assert model.fc.weight.dtype == torch.float32
    assert torch.equal(model.fc.weight, torch.ones(2, 3))


def header(text, declared=None, data=b""):
    """Bytes of a file with this header."""
    return struct.pack("<Q", len(text) if declared is None else declared) + text + data


LONG = 2**22
BROKEN = {
    "short": (b"\x05\0\0", "header would have"),
    "beyond the end": (header(b'{"a":{}}', 1 << 40), "header would have"),
    "no JSON": (header(b'{"a": nonsense}'), "cannot be read"),
    "no mapping": (header(b"[1, 2]  "), "cannot be read"),
    "not text": (header(b'{"\xff\xfe": 1}'), "cannot be read"),
    "huge": (header(b"{" + b" " * (LONG + 8) + b"}"), "longer than names of tensors take"),
    "offsets": (header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,64]}}', data=b"\0" * 16), "cannot be read"),
    "shape": (header(b'{"a":{"dtype":"F32","shape":[1073741824],"data_offsets":[0,4]}}', data=b"\0" * 4), "cannot be"),
    "dtype": (header(b'{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}', data=b"\0" * 4), "cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named_with_the_reason(tmp_path, case):
    content, reason = BROKEN[case]
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"w\.safetensors.*{reason}"):
        read_weights(str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ("", "no JSON"),
        ("{'single': 1}", "no JSON"),
        ('{"open": ', "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"a": ' + "9" * 10_000 + "}", "no JSON"),
        ('["a"]', "a list, no mapping"),
        ("null", "a NoneType, no mapping"),
    ],
    ids=["empty", "quotes", "truncated", "deep", "digits", "list", "null"],
)
def test_what_a_file_says_of_itself_must_be_a_mapping_in_json(tmp_path, about, reason):
    path = write(tmp_path / "w.safetensors", {ABOUT: about})
    with pytest.raises(WeightsError, match=rf"w\.safetensors is damaged.*{reason}"):
        read_file(path)


def test_tensors_are_the_files_whatever_it_says_of_itself(tmp_path):
    path = write(tmp_path / "w.safetensors", {ABOUT: json.dumps({"model": {"x": 1}, "ema": {"y": [1]}})})
    assert list(read_weights(path).tensors) == ["fc.weight"]
