"""Stores: files are whole, a store that is away is waited for, and what is final is told at once."""

import errno
import pickle
import threading
import time

import pytest

from maskrcnn_plus.apps.cluster import stores
from maskrcnn_plus.apps.cluster.stores import Store, StoreError, read_address
from maskrcnn_plus.errors import UserError


@pytest.fixture(params=["local", "s3", "memory"])
def store(request, tmp_path):
    if request.param == "s3":
        request.getfixturevalue("s3")
        return Store("s3://bucket/a folder/results", patience=5)
    return Store(str(tmp_path / "results") if request.param == "local" else f"memory://{tmp_path}/results", patience=5)


def test_files_are_written_read_listed_and_removed(store):
    assert store.list("tables") == []
    assert not store.exists("tables/b 1.parquet")
    with pytest.raises(FileNotFoundError):
        store.read("tables/b 1.parquet")
    store.write("tables/b 1.parquet", b"old")
    store.write("tables/b 1.parquet", b"new content")
    store.write("tables/sub/a", b"")
    assert store.read("tables/b 1.parquet") == b"new content"
    assert store.load("tables/b 1.parquet", lambda file: (file.seek(4), file.read(3))[1]) == b"con"
    assert [(file.address, file.bytes) for file in store.list("tables")] == [(store.child("tables/b 1.parquet"), 11)]
    assert [file.address for file in store.list("tables", recursive=True)] == [
        store.child("tables/b 1.parquet"),
        store.child("tables/sub/a"),
    ]
    assert read_address(store.child("tables/b 1.parquet")) == b"new content"
    store.delete("tables/b 1.parquet")
    store.delete("tables/b 1.parquet")
    assert not store.exists("tables/b 1.parquet")
    assert pickle.loads(pickle.dumps(store)).read("tables/sub/a") == b""


def test_an_object_of_many_parts_is_whole(s3):
    content = bytes(range(256)) * 100_000  # more than one request takes
    Store("s3://bucket").write("large", content)
    assert Store("s3://bucket").read("large") == content


def test_a_store_that_is_away_is_waited_for(s3):
    store = Store("s3://bucket", patience=60)
    store.write("a", b"1")
    s3.stop()
    threading.Timer(2.0, s3.start).start()
    begun = time.monotonic()
    assert store.read("a") == b"1"
    assert time.monotonic() - begun > 1.5
    store.write("b", b"2")
    assert store.read("b") == b"2"


def test_a_store_that_stays_away_is_no_fault_of_the_file(s3):
    store = Store("s3://bucket", patience=0.5)
    s3.stop()
    with pytest.raises(StoreError, match=r"s3://bucket/a: the store did not answer for 0 s"):
        store.read("a")


def test_what_waiting_does_not_mend_is_told_at_once(s3, tmp_path, monkeypatch):
    begun = time.monotonic()
    with pytest.raises(PermissionError):
        Store("s3://nowhere", patience=300).write("a", b"1")
    with pytest.raises(UserError, match="neither pyarrow nor fsspec"):
        Store("nosuch://bucket")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(PermissionError, match="s3://bucket/a"):
        Store("s3://bucket", patience=300).read("a")
    assert time.monotonic() - begun < 60

    def full(path, content, **options):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(stores, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        Store(str(tmp_path), patience=300).write("a", b"1")
    assert time.monotonic() - begun < 60
