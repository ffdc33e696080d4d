"""A pipe where a file is expected is refused by name; to open it would wait for ever."""

import os
import signal

import pytest
from detectron2.data import DatasetCatalog
from torch import nn

from maskrcnn_plus.checkpoints import Checkpointer
from maskrcnn_plus.config import get_config
from maskrcnn_plus.data.formats.coco import read_coco
from maskrcnn_plus.data.images import read_image
from maskrcnn_plus.data.registration import register_label_maps
from maskrcnn_plus.weights.files import read_file

SECONDS = 10


def open_last_checkpoint(path):
    os.rename(path, path.parent / "last_checkpoint")
    Checkpointer(nn.Linear(1, 1), str(path.parent)).load_last()


def open_splits(path):
    os.rename(path, path.parent / "splits.json")
    for name in ("images", "labels"):
        (path.parent / name).mkdir()
    DatasetCatalog.get(register_label_maps(f"pipe {path.parent}", root=str(path.parent), split="train"))


READERS = {
    "weights": (lambda path: read_file(str(path)), "given"),
    "image": (lambda path: read_image(str(path)), "given"),
    "coco": (lambda path: read_coco(str(path), str(path.parent)), "given"),
    "config": (lambda path: get_config(str(path)), "given"),
    "splits": (open_splits, "splits.json"),
    "last checkpoint": (open_last_checkpoint, "last_checkpoint"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_is_refused_by_name(tmp_path, reader):
    read, name = READERS[reader]
    os.mkfifo(tmp_path / "given")

    def stop(*_):
        raise AssertionError("it waits for the other end of the pipe")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with pytest.raises((ValueError, OSError), match=name):
            read(tmp_path / "given")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
