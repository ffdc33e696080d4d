"""What an actor does: it loads the model once and then predicts shards, tiles of huge images, and joins those.

    part of the job   what is written, in this order
    shard             objects, failures, spread (huge images left to `tiles`), images
    tiles             tiles/IMAGE/GROUP.jsonl
    huge image        objects, failures, images; then its tiles are removed

Each file appears whole and has a name that follows from the plan, so that a part which is done twice, because its actor
was killed or a message was lost, leaves what it leaves once.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import torch

from maskrcnn_plus.allocator import keep_freed_memory
from maskrcnn_plus.apps.cluster.attempts import Attempt
from maskrcnn_plus.apps.cluster.job import TABLES, Job, Manifest, read_shard, shard_name
from maskrcnn_plus.apps.cluster.shard_loop import ShardLoop
from maskrcnn_plus.apps.cluster.stores import StoreError, read_address
from maskrcnn_plus.apps.cluster.tables import Rows, read_table
from maskrcnn_plus.apps.cluster.tiles import AllTiles, GroupTiles, SpreadImage
from maskrcnn_plus.apps.predict_files.inputs import InputFile
from maskrcnn_plus.errors import UserError

_AHEAD = 4  # files that are fetched while others are predicted


@dataclass(frozen=True)
class Part:
    """Of a job.

    Attributes:
        index: of a shard or, of a huge image, of a group of its tiles; None for joining them.
        image: the huge image.
    """

    index: int | None
    image: SpreadImage | None = None


class Worker:
    """Predicts parts of a job in this process."""

    def __init__(self, job: Job, manifest: Manifest) -> None:
        """Load the model.

        Raises:
            UserError: the weights here are others than where the job was started.
        """
        torch.set_num_threads(job.threads)
        cv2.setNumThreads(job.threads)
        if os.path.isdir(job.folder):
            os.chdir(job.folder)  # relative paths mean the same files as where the job was started
        self.job, self.manifest = job, manifest
        self.store = job.store()
        self.predictor = job.source.build()
        if self.predictor.device.type == "cpu":
            keep_freed_memory()
        if tuple(self.predictor.class_names) != manifest.class_names:
            raise UserError(
                f"{job.source.weights} has the classes {', '.join(self.predictor.class_names)} on this machine and "
                f"{', '.join(manifest.class_names)} where the job was started: all machines need the same file"
            )

    def do(self, part: Part) -> dict[str, Any]:
        """Do a part of the job; gives the numbers of its images, objects and failures, and the seconds that it took."""
        if part.image is None:
            return self.predict_shard(part.index)
        return self.join_tiles(part.image) if part.index is None else self.predict_tiles(part.image, part.index)

    def predict_shard(self, shard: int) -> dict[str, Any]:
        """Predict the files of a shard, unless it is done; gives what became of it."""
        begun = time.monotonic()
        if self.store.exists(shard_name("images", shard)):
            return self._counted(shard_name("images", shard), shard_name("failures", shard))
        attempt = Attempt(self.store, f"shard-{shard:06d}")
        first = shard * self.manifest.shard_size
        files = [(first + k, path, name) for k, (path, name) in enumerate(read_shard(self.store, shard))]
        with tempfile.TemporaryDirectory(prefix="maskrcnn_plus_") as scratch:
            loop = self._loop(Path(scratch), {position: path for position, path, _ in files})
            if attempt.number:  # so that an image that ends the process is alone
                loop.options = replace(loop.options, batch_size=1)
            loop.run(self._fetch(files, loop, attempt, Path(scratch)))
            spread = [asdict(image) for image in loop.postponed]
            loop.upload()
        for kind in TABLES[:-1]:
            self.store.write(shard_name(kind, shard), loop.rows.content(kind))
        if spread:
            self.store.write(f"spread/shard-{shard:06d}.json", json.dumps(spread).encode())
        self.store.write(shard_name("images", shard), loop.rows.content("images"))
        attempt.end()
        return self._summary(loop.rows, time.monotonic() - begun)

    def predict_tiles(self, image: SpreadImage, group: int) -> dict[str, Any]:
        """Predict some of the tiles of a huge image, unless they are there."""
        begun, name = time.monotonic(), image.group_file(group)
        if not self.store.exists(name):
            attempt = Attempt(self.store, f"{image.key}-{group:05d}")
            with tempfile.TemporaryDirectory(prefix="maskrcnn_plus_") as scratch:
                place, error = Path(scratch, "tiles.jsonl"), None
                kept = GroupTiles(place, image.corners(group))
                if attempt.may_try(image.position):
                    loop = self._loop(Path(scratch), {image.position: image.path}, kept=kept, only=image.number)
                    loop.options = replace(loop.options, formats=())
                    loop.run(self._fetch([(image.position, image.path, image.name)], loop, None, Path(scratch)))
                    error = next((each["reason"] for each in loop.rows.failures), None)
                else:
                    error = "the process ended while it was predicted, most often for lack of memory"
                self.store.write(name, place.read_bytes() if error is None else json.dumps({"error": error}).encode())
            attempt.end()
        return {"images": 0, "objects": 0, "failures": 0, "seconds": time.monotonic() - begun}

    def join_tiles(self, image: SpreadImage) -> dict[str, Any]:
        """Make the objects of a huge image from those of its tiles, unless it is done."""
        begun, names = time.monotonic(), {kind: f"{kind}/{image.key}.parquet" for kind in TABLES}
        if self.store.exists(names["images"]):
            return self._counted(names["images"], names["failures"])
        kept = AllTiles(self.store, image)
        with tempfile.TemporaryDirectory(prefix="maskrcnn_plus_") as scratch:
            loop = self._loop(Path(scratch), {image.position: image.path}, kept=kept, only=image.number)
            if kept.error is None:
                loop.run(self._fetch([(image.position, image.path, image.name)], loop, None, Path(scratch)))
            else:
                loop.rows.fail(image.path, image.part, kept.error)
            loop.upload()
        for kind in TABLES:
            self.store.write(names[kind], loop.rows.content(kind))
        for group in range(image.groups):
            self.store.delete(image.group_file(group))
        return self._summary(loop.rows, time.monotonic() - begun)

    def _loop(self, scratch: Path, paths: dict[int, str], kept: Any = None, only: int | None = None) -> ShardLoop:
        rows = Rows(self.manifest.class_names, self.manifest.category_ids)
        return ShardLoop(self.predictor, self.job, self.store, rows, paths, scratch / "results", kept, only)

    def _fetch(
        self, files: list[tuple[int, str, str]], loop: ShardLoop, attempt: Attempt | None, scratch: Path
    ) -> Iterator[InputFile]:
        """Files on this machine: those of stores are fetched ahead, and removed when nothing waits for them."""
        fetched: list[tuple[int, Path]] = []
        with ThreadPoolExecutor(_AHEAD) as pool:
            coming: dict[int, Future[Path]] = {}
            for index, (position, path, name) in enumerate(files):
                for ahead, address, _ in files[index : index + _AHEAD + 1]:
                    if "://" in address and ahead not in coming:
                        coming[ahead] = pool.submit(_download, address, scratch / f"{ahead}", self.job.patience)
                if attempt is not None and not attempt.may_try(position):
                    reason = "the process ended twice while it was predicted, most often for lack of memory"
                    loop.rows.fail(path, "", reason)
                    continue
                local = path
                if "://" in path:
                    try:
                        place = coming.pop(position).result()
                    except StoreError:
                        raise
                    except OSError as error:  # it is gone, or not for us
                        loop.fail(path, error, path, position)
                        continue
                    fetched.append((position, place))
                    local = str(place)
                yield InputFile(local, name, position)
                waiting = loop.waiting()
                for done in [each for each in fetched if each[0] not in waiting]:
                    shutil.rmtree(done[1].parent)
                    fetched.remove(done)

    def _counted(self, images: str, failures: str) -> dict[str, Any]:
        """What became of a part that was done before."""
        table, failed = (read_table(self.store, name) for name in (images, failures))
        objects = sum(table.column("objects").to_pylist())
        return {"images": len(table), "objects": objects, "failures": len(failed), "seconds": 0.0}

    @staticmethod
    def _summary(rows: Rows, seconds: float) -> dict[str, Any]:
        objects = sum(row["objects"] for row in rows.images)
        return {
            "images": len(rows.images),
            "objects": objects,
            "failures": len(rows.failures),
            "seconds": seconds,
        }


def _download(address: str, folder: Path, patience: float) -> Path:
    """A copy of a file in a folder of its own, under its own name, whose suffix says what it is."""
    folder.mkdir()
    place = folder / (address.rpartition("/")[2] or "file")
    place.write_bytes(read_address(address, patience))
    return place
