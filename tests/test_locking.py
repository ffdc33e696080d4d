"""A folder is one run's, until that run ends in whatever way."""

import errno
import fcntl
import multiprocessing
import os
import subprocess
import sys

import pytest

from maskrcnn_plus.locking import lock_folder

HOLDER = """
import os, sys, time
from maskrcnn_plus.locking import lock_folder
lock = lock_folder("out", sys.argv[1], "wait")
if os.fork() == 0:
    print("worker", flush=True)
    time.sleep(60)
time.sleep(60)
"""


def test_a_folder_is_held_until_it_is_given_back(tmp_path):
    message = "out: another run is writing to this folder; choose another"
    with lock_folder("out", tmp_path / "new/lock", "wait"), pytest.raises(BlockingIOError, match=message):
        lock_folder("out", tmp_path / "new/lock", "choose another")
    lock_folder("out", tmp_path / "new/lock", "wait").close()


def test_a_killed_run_holds_nothing_even_if_its_workers_live_on(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout.readline() == b"worker\n"
            with pytest.raises(BlockingIOError):
                lock_folder("out", tmp_path / "lock", "wait")
            process.kill()
            process.wait()
            lock_folder("out", tmp_path / "lock", "wait").close()
        finally:
            os.killpg(process.pid, 9)


def test_forked_workers_do_not_take_the_lock_away(tmp_path):
    with lock_folder("out", tmp_path / "lock", "wait"):
        worker = multiprocessing.get_context("fork").Process(target=int)
        worker.start()
        worker.join()
        with pytest.raises(BlockingIOError):
            lock_folder("out", tmp_path / "lock", "wait")


@pytest.mark.parametrize(("number", "known"), [(errno.ENOLCK, True), (errno.EIO, False)])
def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog, number, known):
    def flock(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    if known:
        lock_folder("out", tmp_path / "lock", "wait").close()
        assert "out is on a file system without locks" in caplog.text
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            lock_folder("out", tmp_path / "lock", "wait")
