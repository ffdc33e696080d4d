"""Files appear whole or not at all."""

import os

import pytest

from maskrcnn_plus.atomic import TEMPORARY, write_atomically


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("name", ["a.pth", "x" * 255])
def test_content_replaces_the_old_file(tmp_path, durable, name):
    path = tmp_path / name
    write_atomically(path, b"old", durable=durable)
    write_atomically(str(path), lambda file: (file.write(b"ne"), file.write(b"w")), durable=durable)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == [name]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        assert len(list(tmp_path.glob(TEMPORARY))) == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.pth"]


def test_a_move_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old")

    def no_space(source, destination):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]
