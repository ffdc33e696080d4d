"""What a person can cause ends in one line with the exit code; what a fault of the code causes keeps its traceback."""

import errno
import io
import json
import logging
import os
import signal
import sys
import tempfile
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.images import ImageReadError, read_image
from maskrcnn_plus.errors import ConfigError, UserError, describe, run_tool
from maskrcnn_plus.logs import LOGGER, log_to_file


def _raise(error):
    raise error


@pytest.fixture
def log(tmp_path):
    """An open log.txt, as `setup_logger` of Detectron2 makes it."""
    with open(tmp_path / "log.txt", "a") as stream:
        handler = logging.StreamHandler(stream)
        logging.getLogger(LOGGER).addHandler(handler)
        yield tmp_path / "log.txt"
        logging.getLogger(LOGGER).removeHandler(handler)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("x.png is no image."), "x.png is no image."),
        (DataError("2 problems"), "2 problems"),
        (PermissionError(errno.EACCES, "Permission denied", "out/a.pth"), "out/a.pth: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "[Errno 28] No space left on device"),
    ],
)
@pytest.mark.parametrize("failure", [1, 2])
def test_what_a_person_causes_is_one_line(error, line, failure, capsys):
    assert run_tool("tool", lambda: _raise(error), overrides=["a.b=3"], failure=failure) == failure
    assert capsys.readouterr().err == f"tool: {line}\n"


def test_codes_of_ends_without_an_error(capsys):
    assert run_tool("tool", lambda: None) == 0
    assert run_tool("tool", lambda: 1) == 1
    assert capsys.readouterr().err == ""
    assert run_tool("tool", lambda: _raise(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "tool: interrupted\n"
    with pytest.raises(SystemExit, match="143"):
        run_tool("tool", lambda: _raise(SystemExit(143)))


def test_what_files_hold_commands_no_terminal_and_any_name_of_a_file_is_printed(monkeypatch, capsys):
    name = os.fsdecode(b"zelle_\xe4.png")
    run_tool("tool", lambda: _raise(DataError(f"{name}: \x1b]0;title\x07 is\tno\nimage")))
    assert capsys.readouterr().err == "tool: zelle_\\udce4.png: \\x1b]0;title\\x07 is\tno\nimage\n"
    console = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr("sys.stdout", console)
    assert run_tool("tool", lambda: print(name)) == 0
    console.flush()
    assert console.buffer.getvalue() == b"zelle_\\udce4.png\n"


def test_a_fault_of_the_code_keeps_its_traceback_on_the_console(capsys):
    assert run_tool("tool", lambda: [][3]) == 2
    text = capsys.readouterr().err
    assert text.startswith("Traceback (most recent call last)")
    assert text.splitlines()[-1].startswith("tool: IndexError: list index out of range (test_errors.py:")


def test_with_a_log_the_traceback_is_there_and_the_line_says_so(log, capsys):
    assert run_tool("tool", lambda: [][3], overrides=["a.b=3"]) == 2
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1
    assert "a.b=3" in text
    assert str(log) in text
    assert "IndexError" in log.read_text()
    run_tool("tool", lambda: _raise(UserError("of a person")))
    assert str(log) not in capsys.readouterr().err  # known causes need no traceback, which the log has all the same
    assert "UserError: of a person" in log.read_text()


def test_a_value_error_of_a_library_is_no_message_for_people():
    with pytest.raises(ValueError, match="invalid literal") as caught:
        json.loads("[]").append(int("x"))
    assert describe(caught.value).startswith("ValueError: invalid literal")  # raised in this file, not in the package


@pytest.mark.parametrize(
    ("error", "overrides", "named"),
    [
        (TypeError("bad operand"), ["a.lr=x", "b.size=3"], ["a.lr=x", "b.size=3"]),
        (TypeError("lr must be a number"), ["a.lr=x", "b.size=3"], ["a.lr=x"]),
        (ConfigError("part m.box cannot be built", key="m.box"), ["m.box.size=x", "m.boxes=3"], ["m.box.size=x"]),
        (ConfigError("a.lr=x: must be a number"), ["a.lr=x", "b.size=3"], []),
        (UserError("x.png is no image."), ["a.lr=x"], []),
    ],
)
def test_the_overrides_that_may_be_the_cause_are_named(error, overrides, named):
    text = describe(error, overrides)
    listed = text.partition("Changed on the command line: ")[2]
    assert [entry for entry in overrides if entry in listed] == named


@pytest.mark.parametrize(
    "error",
    [MemoryError("a"), MemoryError(), torch.OutOfMemoryError("b"), RuntimeError("x: can't allocate memory: you tried")],
)
def test_too_little_memory_has_a_remedy(error, capsys):
    assert run_tool("tool", lambda: _raise(error)) == 2
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1
    assert "not enough memory" in text
    assert "total_batch_size" in text


def test_sigterm_ends_a_tool_as_ctrl_c_does(tmp_path, capsys):
    """Temporary files are removed; handlers of whoever calls are theirs."""
    got = []

    def write():
        with tempfile.TemporaryDirectory(dir=tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    assert run_tool("tool", lambda: run_tool("tool", write)) == 130
    assert capsys.readouterr().err == "tool: interrupted\n"
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def fork():
        if (child := os.fork()) == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            finally:
                os._exit(0)  # never reached: this process has nothing to remove
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert run_tool("tool", fork) == 143
    previous = signal.signal(signal.SIGTERM, lambda *_: got.append("theirs"))
    try:
        assert run_tool("tool", lambda: os.kill(os.getpid(), signal.SIGTERM)) == 0
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert got == ["theirs"]


class _Images(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return read_image("no/such/image.png")


def test_an_error_of_a_loading_process_is_its_message_alone(capsys):
    assert run_tool("tool", lambda: next(iter(DataLoader(_Images(), num_workers=1)))) == 2
    with pytest.raises(ImageReadError) as here:
        read_image("no/such/image.png")
    assert capsys.readouterr().err == f"tool: {here.value}\n"


def test_the_log_file_alone_gets_what_is_too_long(log, capsys):
    assert log_to_file("a\nb") == str(log)
    assert log.read_text() == "a\nb\n"
    assert capsys.readouterr() == ("", "")


def test_without_a_log_file_nothing_is_written(capsys):
    assert log_to_file("a") is None
    assert capsys.readouterr() == ("", "")


def test_a_part_of_a_config_that_fails_oddly_has_its_traceback_in_the_log(log, capsys):
    def build():
        try:
            len(3)
        except TypeError as error:
            raise ConfigError("config key `model` cannot be built: TypeError", "model") from error

    run_tool("tool", build, overrides=["model.size=x", "train.seed=3"])
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1
    assert "model.size=x" in text
    assert "train.seed" not in text
    assert str(log) in text


def _interrupt(error):
    try:
        raise KeyboardInterrupt
    finally:
        _raise(error)  # as a library that cleans up what was half made


def test_an_interrupt_that_a_library_turned_into_an_error_is_one(capsys):
    assert run_tool("tool", lambda: _interrupt(AttributeError("'NoneType' object has no attribute 'x'"))) == 130
    assert capsys.readouterr().err == "tool: interrupted\n"
    assert run_tool("tool", lambda: _interrupt(OSError(28, "No space left on device", "out/a.png"))) == 2
    assert "out/a.png: No space left on device" in capsys.readouterr().err


def test_a_console_of_another_encoding_shows_any_name(monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", console)
    assert run_tool("tool", lambda: print("é ж", flush=True)) == 0
    assert console.buffer.getvalue().decode("latin-1") == "é \\u0436\n"


def test_output_that_nobody_reads_any_more_is_no_error(monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert run_tool("tool", lambda: print("x", flush=True)) == 128 + signal.SIGPIPE
    assert capsys.readouterr().err == ""
    assert run_tool("tool", lambda: _raise(BrokenPipeError(errno.EPIPE, "Broken pipe"))) == 2  # of another pipe


def test_a_log_that_nobody_reads_any_more_ends_and_disturbs_nothing(monkeypatch, capsys):
    monkeypatch.setattr(logging.Handler, "handleError", logging.Handler.handleError)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        handler = logging.StreamHandler(pipe)
        records = [logging.makeLogRecord({"msg": f"line {k}"}) for k in range(3)]
        assert run_tool("tool", lambda: list(map(handler.emit, records)) and 0) == 0
        handler.emit(logging.makeLogRecord({"msg": "%d", "args": ("no number",)}))
    error = capsys.readouterr().err
    assert error.count("--- Logging error ---") == 1
    assert "no number" in error


def test_an_error_stream_that_is_closed_takes_what_is_written(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert run_tool("tool", lambda: sys.stderr.write("x") and None) == 0
