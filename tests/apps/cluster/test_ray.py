"""The whole command on a Ray of its own: results, actors that end, a full disk. One Ray at a time on a machine.

In CI the tests of a file may be dealt out to several processes, hence the lock.
"""

import errno
import fcntl
import json
import os
import time

import pytest
from cluster_images import MODEL

ray = pytest.importorskip("ray", reason="Ray is not installed (the extra cluster)")

from ray._private import services  # noqa: E402

from maskrcnn_plus.apps.cluster.run import start_ray  # noqa: E402
from maskrcnn_plus.apps.cluster.stores import Store, read_address  # noqa: E402


def waiting(get_node):
    """Ray's function, which raises after 30 seconds on a machine that is too busy to start Ray's processes."""

    def get(*arguments):
        deadline = time.monotonic() + 300
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    return get


@pytest.fixture(scope="module")
def server(tmp_path_factory, s3_of_session):
    """A Ray for the tests of this process, on the loopback address alone, and the S3 server that its actors know."""
    s3_of_session.start()
    base = tmp_path_factory.getbasetemp()
    with open((base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "ray.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_worker_niceness", "0")  # they are what is waited for
            for name, value in s3_of_session.environment.items():
                patch.setenv(name, value)
            patch.setattr(services, "get_node", waiting(services.get_node))
            start_ray(2, object_store_memory=100 * 2**20)
            yield
            ray.shutdown()


@pytest.fixture
def predict(server, folder, tool):
    """Run the command on the images of `folder`."""

    def predict(*arguments, output="tables", inputs=("in",)):
        fixed = ["--input", *inputs, "--output", output, "--shard-size", "2", "--actors", "2", "--patience", "300"]
        return tool("predict_cluster", *MODEL, *fixed, *arguments)

    return predict


def contents(folder):
    """Tables by address."""
    files = [file.address for file in Store(folder).list(recursive=True) if file.address.endswith(".parquet")]
    return {address: read_address(address) for address in files}


def test_a_job_equals_one_process_object_by_object_and_is_done_once(predict, folder, server, tool, capsys):
    for path in (folder / "in").iterdir():
        Store("s3://bucket/in").write(path.name, path.read_bytes())
    assert predict("--format", "labels", inputs=["s3://bucket/in"], output="s3://bucket/tables") == 1
    assert "11 files, 10 images and 55 objects in " in (out := capsys.readouterr().out)
    assert "1 failed; tables in s3://bucket/tables" in out
    before = contents("s3://bucket/tables")
    assert len(before) == 3 * 6 + 1
    assert predict("--format", "labels", inputs=["s3://bucket/in"], output="s3://bucket/tables") == 1
    assert "11 files (11 of them by an earlier run), 0 images and 0 objects" in capsys.readouterr().out
    assert contents("s3://bucket/tables") == before
    assert predict("--format", "counts", inputs=["s3://bucket/in"], output="s3://bucket/tables") == 2
    assert "results of other settings: formats (labels before, counts now)" in capsys.readouterr().err
    assert tool("merge_predictions", "--input", "s3://bucket/tables", "--output", "merged") == 0
    tool("predict", *MODEL, "--input", "in", "--output", "whole", "--format", "coco")
    ours, theirs = (json.loads((folder / name / "predictions.json").read_text()) for name in ("merged", "whole"))
    assert [os.path.basename(entry.pop("file_name")) for entry in ours] == [
        os.path.basename(entry.pop("file_name")) for entry in theirs
    ]
    assert ours == theirs


def test_a_full_disk_ends_the_job_and_the_same_command_goes_on(predict, folder, tool, capsys):
    blocked = folder / "tables/objects"
    blocked.parent.mkdir()
    blocked.write_text("in the way of the tables")
    assert predict("--actors", "1") == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("predict_cluster: ")]
    assert os.strerror(errno.EEXIST) in line or os.strerror(errno.ENOTDIR) in line
    blocked.unlink()
    assert predict("--actors", "1") == 1
    assert tool("merge_predictions", "--input", "tables", "--output", "merged") == 0
    assert "10 images, 55 objects, 1 failed" in capsys.readouterr().out


def test_a_job_that_is_interrupted_says_how_to_go_on(tool, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("maskrcnn_plus.apps.cluster.run.predict_cluster", interrupt)
    assert tool("predict_cluster", *MODEL, "--input", "in", "--output", "tables") == 130
    assert "The same command goes on" in capsys.readouterr().err
