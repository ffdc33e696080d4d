"""An S3 server on this machine: rclone's, from a package, on a folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

COMMAND = Path(sys.executable).with_name("rclone")


class S3Server:
    """Serves a folder, whose sub-folders are its buckets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What its clients need; the last one as it cannot take checksums behind a body."""
        return {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = ["--addr", f"127.0.0.1:{self.port}", "--auth-key", "key,secret", "--config", os.devnull]
        self._process = subprocess.Popen(
            [str(COMMAND), "serve", "s3", *options, "--dir-cache-time", "0", "--no-cleanup", str(self.folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except ConnectionRefusedError:
                time.sleep(0.02)
        raise TimeoutError("the S3 server does not answer")

    def stop(self) -> None:
        """Stop it: connections are refused from now on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
