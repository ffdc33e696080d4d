"""What clients of `tools/serve.py` wait, and what the server's memory does meanwhile.

Usage: python tools/benchmarks/serving.py http://127.0.0.1:7860 image.png other.png --requests 500 --clients 4

A program of its own, which needs numpy only, so that the server has the machine.
"""

from __future__ import annotations

import argparse
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_MEMORY = re.compile(r"^process_resident_memory_bytes (\S+)", re.MULTILINE)


@dataclass
class Load:
    """What became of requests.

    Attributes:
        statuses: how many answers had each status; 0 for no answer at all.
        seconds: of each that was answered with 200, from its first try on.
        memory: of the server in MB, at the start and after each tenth of the requests.
        wall: seconds of all together.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    wall: float = 0.0

    def lines(self) -> Iterator[str]:
        """For people."""
        low, high = np.percentile(self.seconds, [50, 95]) if self.seconds else (np.nan, np.nan)
        yield f"answers: {dict(sorted(self.statuses.items()))}"
        rate = self.statuses[200] / self.wall
        yield f"{rate:.2f} images a second; an answer takes {low:.2f} s (p50), {high:.2f} s (p95)"
        yield f"memory of the server, MB, from start to end: {' '.join(f'{each:.0f}' for each in self.memory)}"


def put_load(url: str, images: Sequence[bytes], requests: int, clients: int, token: str = "") -> Load:
    """Post images in turn by so many clients, each of which waits for its answer; 429 is tried again when it says.

    Args:
        url: of the server.
        images: files.
        requests: how many are posted.
        clients: how many at a time.
        token: of the server.
    """
    load, lock = Load(), threading.Lock()
    headers = {"Authorization": f"Bearer {token}"} if token else {}

    def measure_memory() -> None:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/metrics", headers=headers)) as answer:
            found = _MEMORY.search(answer.read().decode())
        if found:
            load.memory.append(float(found[1]) / 1e6)

    def post(number: int) -> None:
        request = urllib.request.Request(
            f"{url}/v1/predict", images[number % len(images)], {"Content-Type": "application/octet-stream", **headers}
        )
        start, status = time.perf_counter(), 429
        while status == 429:
            try:
                with urllib.request.urlopen(request) as answer:
                    answer.read()
                    status = answer.status
            except urllib.error.HTTPError as error:
                status = error.code
                if status == 429:
                    time.sleep(float(error.headers["Retry-After"]))
            except OSError:
                status = 0
        with lock:
            load.statuses[status] += 1
            if status == 200:
                load.seconds.append(time.perf_counter() - start)
            if load.statuses.total() % max(requests // 10, 1) == 0:
                measure_memory()

    measure_memory()
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(post, range(requests)))
    load.wall = time.perf_counter() - start
    return load


def main() -> None:
    """Print what a running server does under load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the server")
    parser.add_argument("images", nargs="+", type=Path, help="files, which are posted in turn")
    parser.add_argument("--requests", type=int, default=500, help="(default: %(default)s)")
    parser.add_argument("--clients", type=int, default=4, help="requests at a time (default: %(default)s)")
    parser.add_argument("--token", default="", help="of the server")
    args = parser.parse_args()
    images = [path.read_bytes() for path in args.images]
    for line in put_load(args.url, images, args.requests, args.clients, args.token).lines():
        print(line)


if __name__ == "__main__":
    main()
