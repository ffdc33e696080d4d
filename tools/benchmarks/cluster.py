"""What a job on a cluster costs besides the model, and the plan of a large one that follows from it.

Measured on this machine, in processor time: naming and planning files, an actor's work around a shard (its part of the
plan, notes, tables), and Ray's around a part of a job. The plan puts these figures and the throughput of a core
together for 1 to 1,000 nodes; what it assumes, it says.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from maskrcnn_plus.apps.cluster.attempts import Attempt
from maskrcnn_plus.apps.cluster.inputs import ListedFile
from maskrcnn_plus.apps.cluster.job import TABLES, plan_job, read_shard, shard_name
from maskrcnn_plus.apps.cluster.run import Actors, RayConnection
from maskrcnn_plus.apps.cluster.stores import Store
from maskrcnn_plus.apps.cluster.tables import Rows
from maskrcnn_plus.apps.predict_files.inputs import name_files
from maskrcnn_plus.masks.rle_masks import RLEMasks

__all__ = ["benchmark_cluster"]

LISTED = 1000  # objects that a request of a listing names
ASSUMED = {"seconds a request": 0.05, "GET requests a second of a prefix": 5500.0, "cores a node": 32.0}
_FILES, _PARTS = 100_000, 100


@dataclass
class Costs:
    """Seconds of the processor: a file of the plan, an actor a shard, Ray's driver a part; and bytes."""

    file: float
    shard: float
    part: float
    shard_bytes: int
    plan_bytes: int


def benchmark_cluster(images: int, rate: float, objects: int, megabytes: float, shard_size: int = 500) -> None:
    """Measure, and print the plan of a job.

    Args:
        images: of the job.
        rate: images a second of a core, of `tools/benchmark.py inference` or a run of one's own.
        objects: of an image.
        megabytes: of an image's file.
        shard_size: files of a shard.
    """
    costs = measure(objects, shard_size)
    print(f"a file in the plan   {1e6 * costs.file:8.0f} us, {costs.plan_bytes} bytes")
    print(f"an actor a shard     {1e3 * costs.shard:8.1f} ms, {costs.shard_bytes / 1e6:.2f} MB of {shard_size} images")
    print(f"Ray's driver a part  {1e3 * costs.part:8.1f} ms")
    print("assumed:", ", ".join(f"{name} {value:g}" for name, value in ASSUMED.items()))
    shards = -(-images // shard_size)
    start = images * costs.file + images / LISTED * ASSUMED["seconds a request"]
    share = costs.shard / (costs.shard + shard_size / rate)
    print(f"\n{images} images, {shards} shards, {images / rate / 3600:.0f} core hours; around them {100 * share:.2f} %")
    print("| nodes | cores | hours | before the first image, min | driver busy | GET/s | MB/s read | idle at the end |")
    print("|---|---|---|---|---|---|---|---|")
    for nodes in (1, 10, 100, 1000):
        cores = int(nodes * ASSUMED["cores a node"])
        waves = -(-shards // cores)  # an actor has whole shards
        working = waves * (shard_size / rate + costs.shard)
        idle = 1 - shards / (waves * cores)
        reads = images / working
        print(
            f"| {nodes} | {cores} | {(start + working) / 3600:.2f} | {start / 60:.1f} | "
            f"{100 * shards * costs.part / working:.1f} % | {reads:.0f} "
            f"({100 * reads / ASSUMED['GET requests a second of a prefix']:.0f} %) | {reads * megabytes:.0f} | "
            f"{100 * idle:.0f} % |"
        )


def measure(objects: int, shard_size: int) -> Costs:
    """The costs on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        paths = [(f"s3://bucket/plate{k // 1000:04d}/well_{k:07d}.tif", "") for k in range(_FILES)]
        files: list[ListedFile] = []

        def plan() -> None:
            files.extend(ListedFile(file.path, file.name, 10**6, k) for k, file in enumerate(name_files(paths)))
            plan_job(store, files, {}, shard_size, (["cell"], None), False)

        per_file = _seconds(plan) / _FILES
        instances = _instances(objects)

        def shard() -> None:
            attempt = Attempt(store, "shard-000000")
            named = read_shard(store, 0)
            rows = Rows(["cell"], None)
            for k, (path, name) in enumerate(named):
                rows.add(instances, k + 1, path, name, "", None)
            for kind in TABLES:
                store.write(shard_name(kind, 0), rows.content(kind))
            attempt.end()

        shard()
        per_shard = _seconds(shard)
        size = sum(path.stat().st_size for kind in TABLES for path in Path(folder, kind).iterdir())
        plan_bytes = Path(folder, "inputs.parquet").stat().st_size // _FILES
    connection = RayConnection(Actors(1))
    with connection:
        connection.map(_Nothing, (), 1)  # starts Ray and an actor
        per_part = _seconds(lambda: connection.map(_Nothing, (), _PARTS)) / _PARTS
    return Costs(per_file, per_shard, per_part, size, plan_bytes)


class _Nothing:
    """An actor without work."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"files": batch["id"]}


def _instances(objects: int) -> Instances:
    rng = np.random.default_rng(0)
    corners = torch.from_numpy(rng.integers(0, 470, (objects, 2)).astype(np.float32))
    masks = np.zeros((objects, 512, 512), dtype=bool)
    y, x = np.ogrid[:512, :512]
    for mask, (left, top) in zip(masks, corners.tolist(), strict=True):
        mask |= (x - left - 15) ** 2 + (y - top - 15) ** 2 < 15**2
    return Instances(
        (512, 512),
        pred_boxes=Boxes(torch.cat([corners, corners + 30], dim=1)),
        scores=torch.rand(objects),
        pred_classes=torch.zeros(objects, dtype=torch.int64),
        pred_masks_rle=RLEMasks.from_dense(masks),
    )


def _seconds(action: Callable[[], object]) -> float:
    """Of the processor, of this process: other programs may run beside it."""
    begun = time.process_time()
    action()
    return time.process_time() - begun
