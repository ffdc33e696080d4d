"""The tiles of an image in a file as they are predicted, so that a prediction that was stopped goes on after them.

A line of JSON a tile, after one that says what they are of. Numbers come back as they were, bit for bit. A last line
that was not written to its end, and all after a damaged one, are predicted again.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import IO, Any

import numpy as np

from maskrcnn_plus.masks.merge import TileObjects
from maskrcnn_plus.masks.rle_masks import RLEMasks


class KeptTiles:
    """Tiles of one image, for `predict_tiled`; a context manager, which closes the file."""

    def __init__(self, path: str | os.PathLike, identity: str) -> None:
        """Name the file, which is opened when prediction begins.

        Args:
            path: the file, made with its folders if it is not there.
            identity: what the tiles depend on besides the tiling: the image file, the weights and the settings.
        """
        self._path, self._identity = Path(path), identity
        self._file: IO[bytes] | None = None

    def begin(self, plan: str) -> dict[tuple[int, int], TileObjects]:
        """Open the file for more tiles and read those that are there, by (x, y).

        Args:
            plan: the tiling and whatever else of the prediction they depend on. Tiles of another plan or identity are
                forgotten.

        Raises:
            OSError: the file cannot be read or written.
        """
        self.close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._path, "a+b")  # noqa: SIM115 - closed with this object
        self._file.seek(0)
        head = json.dumps({"identity": self._identity, "plan": plan}).encode() + b"\n"
        tiles: dict[tuple[int, int], TileObjects] = {}
        if self._file.readline() != head:
            self._file.truncate(0)
            self._write(head)
            return tiles
        end = len(head)
        for line in self._file:
            tile = read_tile(line)
            if tile is None:
                break
            tiles[tile.x, tile.y] = tile
            end += len(line)
        self._file.truncate(end)
        return tiles

    def add(self, tile: TileObjects) -> None:
        """Keep a tile that was predicted; it is there even if the process is killed now.

        Raises:
            OSError: it cannot be written, with the name of the file as `filename`.
        """
        content = {
            "x": tile.x,
            "y": tile.y,
            "height": tile.height,
            "width": tile.width,
            "boxes": tile.boxes.tolist(),
            "scores": tile.scores.tolist(),
            "classes": tile.classes.tolist(),
            "counts": [rle["counts"] for rle in tile.rles],
        }
        self._write(json.dumps(content).encode() + b"\n")

    def close(self) -> None:
        """Close the file, which stays."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def __enter__(self) -> KeptTiles:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # it tries once more to write the line
                self.close()
            raise OSError(error.errno, error.strerror, str(self._path)) from error


def read_tile(line: bytes) -> TileObjects | None:
    """The tile of a line; None where it is damaged."""
    try:
        content: dict[str, Any] = json.loads(line)
        size = (content["height"], content["width"])
        masks = RLEMasks([{"size": size, "counts": counts} for counts in content["counts"]], size)
        boxes = np.array(content["boxes"], dtype=np.float32).reshape(-1, 4)
        scores = np.array(content["scores"], dtype=np.float32)
        classes = np.array(content["classes"], dtype=np.int64)
        place = (content["x"], content["y"], *size)
    except (ValueError, TypeError, KeyError):
        return None
    whole = line.endswith(b"\n") and all(type(value) is int for value in place)
    return TileObjects(*place, boxes, scores, classes, masks) if whole and len(boxes) == len(masks) else None
