"""The tables of a job on a cluster -> predictions.json and the usual formats, as `predict_files` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from maskrcnn_plus.apps.cluster.job import Manifest, read_manifest, shard_name
from maskrcnn_plus.apps.cluster.stores import Store
from maskrcnn_plus.apps.cluster.tables import iterate_images, read_table, to_predictions
from maskrcnn_plus.apps.cluster.tiles import list_spread
from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.errors import UserError, listed
from maskrcnn_plus.results import MERGED, write_results
from maskrcnn_plus.results.coco import write_coco

FORMATS = ("labels", "csv", "geojson", "counts")
"""Formats that are made of the tables, without pixels; a csv file has no intensities then."""

# The keys of `results.coco.coco_results`.
_COCO = ("image_id", "file_name", "name", "label_id", "category_id", "bbox", "score", "segmentation")


class Tables:
    """The tables of a finished job.

    Attributes:
        manifest: its plan.
    """

    def __init__(self, address: str) -> None:
        """Open them.

        Args:
            address: of the output of the job.

        Raises:
            UserError: there are none, or the job is not finished; the message says which shards are missing.
        """
        self.store = Store(address)
        try:
            self.manifest: Manifest = read_manifest(self.store)
        except FileNotFoundError:
            raise UserError(f"{address} has no manifest.json: it is no output of tools/predict_cluster.py") from None
        there = {file.address.rpartition("/")[2] for file in self.store.list("images")}
        names = [shard_name("images", k).rpartition("/")[2] for k in range(self.manifest.shards)]
        missing = [str(k) for k, name in enumerate(names) if name not in there]
        self._spread: dict[int, list[str]] = {}
        for image in list_spread(self.store):
            self._spread.setdefault(image.position // self.manifest.shard_size, []).append(image.key)
            missing += [image.path] * (f"{image.key}.parquet" not in there)
        if missing:
            raise UserError(
                f"{address} is not finished: shards or huge images {listed(missing, 20)} are missing. The command of "
                "the job goes on"
            )

    def images(self) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """The row of each image with those of its objects, in the order of the plan; one shard is in memory.

        Raises:
            UserError: a table is damaged, or does not fit the others.
        """
        for shard in range(self.manifest.shards):
            tables = []
            for kind in ("objects", "images"):
                names = [shard_name(kind, shard), *(f"{kind}/{key}.parquet" for key in self._spread.get(shard, []))]
                tables.append(pa.concat_tables([read_table(self.store, name) for name in names]))
            yield from iterate_images(*tables)

    def failures(self) -> list[dict[str, Any]]:
        """Rows of the images that could not be predicted."""
        names = sorted(file.address.rpartition("/")[2] for file in self.store.list("failures"))
        return [row for name in names for row in read_table(self.store, f"failures/{name}").to_pylist()]


def merge_predictions(address: str, output: str | Path, formats: Sequence[str] = ()) -> dict[str, int]:
    """Write `predictions.json` (COCO results of all images), `failures.json`, and formats of each image.

    Args:
        address: of the output of a job.
        output: folder on this machine.
        formats: of `FORMATS`.

    Returns:
        The number of "images", "objects" and "failures".

    Raises:
        UserError: see `Tables`, or a format that needs the pixels.
        OSError: a file cannot be read or written.
    """
    unknown = [kind for kind in formats if kind not in FORMATS]
    if unknown:
        raise UserError(f"format {unknown[0]!r} is not made of tables; choose of {', '.join(FORMATS)}")
    tables, folder = Tables(address), Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    names, ids = tables.manifest.class_names, tables.manifest.category_ids
    counts = {"images": 0, "objects": 0}
    parts: dict[str, list[Path]] = {kind: [] for kind in formats}

    def entries() -> Iterator[list[dict[str, Any]]]:
        for image, objects in tables.images():
            counts["images"] += 1
            counts["objects"] += len(objects)
            yield [{key: row[key] for key in _COCO} for row in objects]
            if formats:
                found = to_predictions(image, objects, names, ids)
                for kind, path in write_results(folder, image["name"], found, formats=formats).items():
                    parts[kind].append(path)

    write_coco(folder / "predictions.json", entries())
    for kind, paths in parts.items():
        if kind in MERGED:
            name, merge = MERGED[kind]
            merge(folder / name, paths, names)
    failures = tables.failures()
    write_atomically(folder / "failures.json", json.dumps(failures, indent=1).encode(), durable=True)
    return {**counts, "failures": len(failures)}
