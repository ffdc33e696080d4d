"""What the person at the command line can cause, told in one line; the traceback goes to the log file.

The tools' mains run inside `run_tool`. Code below them raises a `UserError` (`ConfigError`, `DataError`,
`ImageReadError`, `WeightsError`), OSError or ValueError with a message that says what is wrong, where and what to do.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from maskrcnn_plus.logs import log_to_file

_PACKAGE = Path(__file__).resolve().parent
OURS = (_PACKAGE, _PACKAGE.with_name("tools"), _PACKAGE.with_name("maskrcnn_plus_tools"))  # installed

__all__ = ["ConfigError", "UserError", "describe", "first_line", "listed", "printable", "run_tool"]

_print_log_error = logging.Handler.handleError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class UserError(ValueError):
    """Files, a config or a command that cannot be used; the message is all that a person needs."""


class ConfigError(UserError):
    """A value of the config that cannot be used."""

    def __init__(self, message: str, key: str = "") -> None:
        """Keep the message and the key.

        Args:
            message: names the key and its value.
            key: the key, or that of the part of the config that could not be built.
        """
        super().__init__(message)
        self.key = key


def run_tool(name: str, main: Callable[[], int | None], *, overrides: Sequence[str] = (), failure: int = 2) -> int:
    """Run a command line and turn what it raises into one line on the standard error.

    The traceback is written to the log file, where there is one; without one, the traceback of an error that no known
    mistake explains is printed before the line. Names that the console cannot show are written with escapes.

    Args:
        name: of the tool, the start of the line.
        main: what is run; gives an exit code, None for 0.
        overrides: "key=value" of the command line, of which the line names those that an error may come from.
        failure: exit code after an error.

    Returns:
        The exit code: that of `main`, `failure`, 130 after Ctrl-C and a job scheduler's SIGTERM, or 141 where nobody
        reads the output any more.
    """
    _make_streams_usable()
    try:
        with _sigterm_like_ctrl_c():
            return main() or 0
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if _is_named(error, "ProcessExitedException"):  # one of `--num-gpus`, which has told why
            return error.exit_code if error.exit_code > 0 else failure
        if _of_interrupt(error):
            print(f"{name}: interrupted", file=sys.stderr)
            return 130
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 128 + signal.SIGPIPE
        text = "".join(traceback.format_exception(error))
        log = log_to_file(text, logging.ERROR)
        line = printable(describe(error, overrides))
        if log and not (_explained(error) and isinstance(error.__cause__, ValueError | OSError | type(None))):
            line += f" The traceback is in {log}."
        elif not _explained(error):
            print(text, end="", file=sys.stderr)
        print(f"{name}: {line}", file=sys.stderr)
        return failure


@contextlib.contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, which would end the process at once and leave temporary files, raise KeyboardInterrupt."""
    pid, here = os.getpid(), threading.current_thread() is threading.main_thread()  # handlers are set nowhere else

    def interrupt(*_: object) -> None:
        if os.getpid() != pid:  # a forked process inherited the handler
            os._exit(128 + signal.SIGTERM)
        raise KeyboardInterrupt

    if not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _make_streams_usable() -> None:
    """Let a closed stream take what is written, and any text be written: a console of Latin-1 ends no run."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
        elif getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.Handler.handleError = _handle_log_error


def _handle_log_error(handler: logging.Handler, record: logging.LogRecord) -> None:
    """Go on in silence where nobody reads the console's log any more: a training outlives the `head` behind it."""
    if not (isinstance(sys.exc_info()[1], BrokenPipeError) and _nobody_reads()):
        _print_log_error(handler, record)


def _nobody_reads() -> bool:
    """Whether the output goes to a pipe that was closed, as by `head`; what is left of it goes nowhere then."""
    closed = False
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a stream that is no file
            poll = select.poll()
            poll.register(stream.fileno(), 0)
            if any(event & select.POLLERR for _, event in poll.poll(0)):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
                closed = True
    return closed


def describe(error: Exception, overrides: Sequence[str] = ()) -> str:
    """An error as one sentence or more, with the overrides that it may come from.

    Args:
        error: of any class. What it says of itself is taken where it is made for people (`UserError`, OSError and other
            ValueErrors), otherwise with its class and the line of code.
        overrides: "key=value" of the command line.
    """
    text = _message(error)
    if _no_memory(error):
        reason = _first_line(text, error)[:200]
        text = (
            f"not enough memory ({reason}). Lower dataloader.train.total_batch_size, the size of the images, or "
            "dataset.max_objects."
        )
    elif not _explained(error):
        frame = traceback.extract_tb(error.__traceback__)[-1:]
        place = f" ({os.path.basename(frame[0].filename)}:{frame[0].lineno})" if frame else ""
        text = f"{type(error).__name__}: {_first_line(text)[:300]}{place}"
    changed = _suspects(text, getattr(error, "key", ""), overrides)
    if changed and (isinstance(error, ConfigError) or not isinstance(error, UserError | OSError)):
        text += ("" if text.endswith((".", "!", "?")) else ".") + f" Changed on the command line: {', '.join(changed)}."
    return text


def printable(text: str) -> str:
    """A text with what a file may have put in it to command a terminal, and halves of characters, written out."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def first_line(error: BaseException) -> str:
    """The first line of what an error says; the name of its class where it says nothing, as Python's MemoryError."""
    return _first_line(str(error).strip(), error)


def listed(names: Sequence[str], limit: int) -> str:
    """Names in a row; of many the first ones, and how many there are besides."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _first_line(text: str, error: BaseException | None = None) -> str:
    return (text.splitlines() or [type(error).__name__ if error is not None else ""])[0]


def _explained(error: Exception) -> bool:
    """Whether its message is made for people: ours, the system's, and not what a library says of a call of ours."""
    if isinstance(error, UserError | OSError) or _no_memory(error):
        return True
    if not isinstance(error, ValueError | FloatingPointError) or _of_loading_process(error):
        return isinstance(error, ValueError)
    frames = traceback.extract_tb(error.__traceback__)[-1:]
    files = [Path(frame.filename).resolve() for frame in frames]
    return any(file.is_relative_to(folder) for file in files for folder in OURS)


def _of_interrupt(error: BaseException | None) -> bool:
    """Whether it stands for an interrupt, which came while a library was in the middle of what then failed."""
    if isinstance(error, Exception) and _explained(error):
        return False
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _no_memory(error: Exception) -> bool:
    # On a CPU PyTorch has no class of its own for it.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (_is_named(error, "OutOfMemoryError") or "can't allocate memory" in str(error))
    )


def _is_named(error: Exception, name: str) -> bool:
    """Whether it is of a class of PyTorch, which may not be installed."""
    return any(each.__name__ == name and each.__module__.startswith("torch") for each in type(error).__mro__)


def _message(error: Exception) -> str:
    """The error's own text, freed from how Python and PyTorch wrap it."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{os.fspath(error.filename)!s}: {error.strerror}"
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if _of_loading_process(error):
        text = text.rstrip().rpartition(f"{type(error).__qualname__}: ")[2]
    return text.strip()


def _of_loading_process(error: Exception) -> bool:
    """Whether it came from a process of a DataLoader, whose traceback PyTorch makes a part of the message."""
    return "Original Traceback (most recent call last):" in str(error)


def _suspects(text: str, key: str, overrides: Sequence[str]) -> list[str]:
    """The overrides below a config key or named by a text, else all; none where the text has key and value already."""
    of_key = {entry: entry.partition("=")[0].strip() for entry in overrides}
    if any(name in text for name in of_key.values()):
        return []
    words = set(re.findall(r"\w+", text))
    near = [
        entry
        for entry, name in of_key.items()
        if (key and f"{name}.".startswith(f"{key}.")) or name.rpartition(".")[2] in words
    ]
    return near or list(of_key)
