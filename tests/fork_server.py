"""Scripts in processes of their own that start at once: forks of one that has imported everything.

A new Python takes ten seconds to import PyTorch, Detectron2 and timm. Where a test is not about the start of a process,
a fork does: it has a number, a console, an environment and an exit code, and can be killed.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["maskrcnn_plus.training", "maskrcnn_plus.apps.predict_files.run"])


class Script:
    """A running script, with the methods of `subprocess.Popen` that the tests use; stdout and stderr are one text."""

    def __init__(
        self,
        path: str | Path,
        *arguments: object,
        cwd: str | Path = ROOT,
        environment: Mapping[str, str] | None = None,
        new_session: bool = False,
    ) -> None:
        """Start it on one thread.

        Args:
            path: of a Python file that runs as `__main__`.
            arguments: of its command line.
            cwd: its working folder.
            environment: variables that change.
            new_session: whether `os.killpg` of its `pid` reaches it and its children alone.
        """
        number, self.console = tempfile.mkstemp(suffix=".txt")
        os.close(number)
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        command = [os.fspath(path), *map(str, arguments)]
        self._process = _CONTEXT.Process(
            target=_run, args=(command, os.fspath(cwd), variables, self.console, new_session)
        )
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code, minus a signal's number; None while it runs."""
        return self._process.exitcode

    returncode = property(poll)

    def text(self) -> str:
        """What it has printed."""
        return Path(self.console).read_text()

    def send_signal(self, number: int) -> None:
        """Send a signal to it alone."""
        os.kill(self.pid, number)

    def communicate(self, timeout: float = 240) -> str:
        """Wait for its end; gives what it printed."""
        self._process.join(timeout)
        text = self.text()
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"{self._process.name} did not end in {timeout} s: {text[-3000:]}")
        os.unlink(self.console)
        return text


def _run(command: list[str], cwd: str, variables: dict[str, str], console: str, new_session: bool) -> None:
    import torch

    if new_session:
        os.setsid()
    file = os.open(console, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    torch.set_num_threads(1)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")
