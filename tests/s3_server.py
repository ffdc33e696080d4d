"""An S3 server on this machine: SeaweedFS, from a package."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

COMMAND = Path(sys.executable).with_name("weed")
STORE = ("master", "volume", "filer")  # the parts behind the server that clients talk to


class S3Server:
    """A server with the bucket `bucket`, which it keeps in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        identity = {"credentials": [{"accessKey": "key", "secretKey": "secret"}], "actions": ["Admin"]}
        (folder / "access.json").write_text(json.dumps({"identities": [{"name": "user", **identity}]}))
        (folder / "content").mkdir()
        self._ports = dict(
            zip((name + kind for name in (*STORE, "s3") for kind in ("", ".grpc")), _find_free_ports(), strict=False)
        )
        self._store: subprocess.Popen | None = None
        self._gate: subprocess.Popen | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What its clients need."""
        return {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._ports['s3']}",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Start it where it does not run, and wait until it has the bucket."""
        if self._gate is not None:
            return
        here = {"ip.bind": "127.0.0.1"}
        if self._store is None:
            options = {"dir": self._folder / "content", "ip": "127.0.0.1", "filer": "true", "master.telemetry": "false"}
            options |= {"volume.max": 20, "master.volumeSizeLimitMB": 64, **here}
            ports = {f"{name}.port{kind}": self._ports[name + kind] for name in STORE for kind in ("", ".grpc")}
            self._store = self._run("server", options | ports)
        options = {"filer": f"127.0.0.1:{self._ports['filer']}.{self._ports['filer.grpc']}", **here}
        options |= {"config": self._folder / "access.json", "port.iceberg": 0, "port.lance": 0}
        options |= {"port": self._ports["s3"], "port.grpc": self._ports["s3.grpc"], "autoCreateBucket": "false"}
        self._gate = self._run("s3", options)
        self._wait()

    def _run(self, command: str, options: dict[str, object]) -> subprocess.Popen:
        with open(self._folder / f"{command}.log", "a") as log:
            arguments = [str(COMMAND), command, *(f"-{name}={value}" for name, value in options.items())]
            return subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _wait(self) -> None:
        from pyarrow.fs import S3FileSystem

        place = {"endpoint_override": f"127.0.0.1:{self._ports['s3']}", "scheme": "http"}
        client = S3FileSystem(access_key="key", secret_key="secret", allow_bucket_creation=True, **place)
        deadline = time.monotonic() + 90
        while True:
            try:
                client.create_dir("bucket")
                with client.open_output_stream("bucket/ready") as file:
                    file.write(b"yes")
                client.delete_file("bucket/ready")
                return
            except OSError:
                if time.monotonic() > deadline or self._gate.poll() is not None:
                    logs = [path.read_text()[-2000:] for path in self._folder.glob("*.log")]
                    raise TimeoutError("\n".join(logs)) from None
                time.sleep(0.1)

    def stop(self) -> None:
        """Stop what clients talk to: connections are refused from now on."""
        if self._gate is not None:
            self._gate.kill()
            self._gate.wait()
            self._gate = None

    def close(self) -> None:
        """Stop all of it."""
        self.stop()
        if self._store is not None:
            self._store.kill()
            self._store.wait()


def _find_free_ports() -> Iterator[int]:
    """Ports that no connection takes by chance: below those that Linux gives to clients."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        yield port
