"""Files appear whole or not at all."""

import errno
import os

import pytest
import torch

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


class _FullDisk:
    """A file on a disk that has room for 1000 bytes more."""

    def __init__(self, file):
        self.file = file
        self.room = 1000

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def flush(self):
        self.file.flush()


@pytest.mark.parametrize(
    "write",
    [
        lambda file: _FullDisk(file).write(bytes(2000)),
        lambda file: torch.save({"weight": torch.ones(1000)}, _FullDisk(file)),  # which raises a RuntimeError
    ],
)
def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path, write):
    path = tmp_path / "a.pth"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(path, write, durable=True)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.pth"]


def test_a_missing_folder_is_told_with_the_name_of_the_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "gone/a.pth", b"new")
    assert caught.value.filename == str(tmp_path / "gone/a.pth")


def test_a_file_that_is_read_for_the_content_keeps_its_own_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "a.json", lambda file: file.write((tmp_path / "part").read_bytes()))
    assert str(caught.value.filename) == str(tmp_path / "part")
