"""Huge images, whose tiles are predicted by several actors and then joined as those of one process are.

The tiles are numbered as `predict_tiled` goes through them and dealt out in runs, so that an actor reads neighbouring
parts of the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_plus.apps.cluster.stores import Store
from maskrcnn_plus.apps.predict_files.image_predictor import ImagePredictor
from maskrcnn_plus.apps.predict_files.prediction_loop import TakenImage
from maskrcnn_plus.data.windows import ImageWindows
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.inference.kept_tiles import KeptTiles, read_tile
from maskrcnn_plus.inference.tiling import plan_tiling, tile_starts
from maskrcnn_plus.masks.merge import TileObjects
from maskrcnn_plus.plain_data import from_plain


@dataclass(frozen=True)
class SpreadImage:
    """A huge image.

    Attributes:
        position, path: of its file.
        name: of the results of the file.
        number, part: of the page or frame.
        tops, lefts: where tiles begin, pixels.
        groups: parts that the tiles are dealt out in.
    """

    position: int
    path: str
    name: str
    number: int
    part: str
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    groups: int

    @property
    def key(self) -> str:
        """Of the names of its files."""
        return f"image-{self.position:09d}-{self.number:06d}"

    def group_file(self, group: int) -> str:
        """Of the tiles of a group, from 0."""
        return f"tiles/{self.key}/{group:05d}.jsonl"

    def corners(self, group: int) -> set[tuple[int, int]]:
        """(x, y) of the tiles of a group."""
        corners = [(x, y) for y, x in product(self.tops, self.lefts)]
        first, last = (len(corners) * k // self.groups for k in (group, group + 1))
        return set(corners[first:last])


def plan_spread(
    images: ImagePredictor, taken: TakenImage, path: str, part: ImageWindows, tiles: dict[str, Any], size: int
) -> SpreadImage | None:
    """Deal out the tiles of an image.

    Args:
        images: the model.
        taken: the image.
        path: of its file, as the plan has it.
        part: what of it is predicted.
        tiles: arguments of `predict_tiled`.
        size: tiles of a group; an image with no more is not spread (None).
    """
    options = dict(tiles)
    if images.predictor.auto_scale is not None:
        options["scale"] = images.predictor.auto_scale.scale(taken.diameter)
    tiling = plan_tiling(images.predictor, options.get("tile_size"), scale=options.get("scale"))
    tops, lefts = (tuple(tile_starts(side, tiling)) for side in part.shape[:2])
    count = len(tops) * len(lefts)
    if count <= size:
        return None
    name = taken.image.name.removesuffix(f"_p{taken.image.number:04d}")
    name = name.removesuffix(f"/frame_{taken.image.number:06d}")
    groups = math.ceil(count / size)
    return SpreadImage(taken.position, path, name, taken.image.number, taken.image.part, tops, lefts, groups)


def read_spread(content: bytes) -> list[SpreadImage]:
    """The images of a file of a shard."""
    return [from_plain(each, SpreadImage) for each in json.loads(content)]


def list_spread(store: Store) -> Iterator[SpreadImage]:
    """The huge images of all shards."""
    for file in store.list("spread"):
        yield from read_spread(store.read(f"spread/{file.address.rpartition('/')[2]}"))


class GroupTiles(KeptTiles):
    """Lets `predict_tiled` predict the tiles of one group, and keeps them; all others look as if they were empty."""

    def __init__(self, path: Path, corners: set[tuple[int, int]]) -> None:
        super().__init__(path, "")
        self._corners = corners

    def begin(self, plan: str) -> dict[tuple[int, int], TileObjects]:
        """As of the base; tiles of other groups are there."""
        super().begin(plan)
        return _EmptyElsewhere(self._corners)


class _EmptyElsewhere(dict[tuple[int, int], TileObjects]):
    """Tiles without objects at all places but some."""

    def __init__(self, places: set[tuple[int, int]]) -> None:
        super().__init__()
        self._places = places

    def get(self, place: tuple[int, int], default: TileObjects | None = None) -> TileObjects | None:
        """None for the places."""
        nothing = np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64), []
        return default if place in self._places else TileObjects(*place, 1, 1, *nothing)


class AllTiles(KeptTiles):
    """Gives `predict_tiled` the tiles of all groups, so that it only joins them.

    Attributes:
        error: why the tiles of some group could not be predicted.
    """

    def __init__(self, store: Store, image: SpreadImage) -> None:
        """Read the files of the groups.

        Raises:
            OSError: they cannot be read.
        """
        super().__init__("", "")
        self._image, self._heads = image, set()
        self._tiles: dict[tuple[int, int], TileObjects] = {}
        self.error: str | None = None
        for group in range(image.groups):
            head, *lines = store.read(image.group_file(group)).splitlines(keepends=True)
            content = json.loads(head)
            self.error = self.error or content.get("error")
            self._heads.add(content.get("plan"))
            for tile in map(read_tile, lines):
                self._tiles[tile.x, tile.y] = tile

    def begin(self, plan: str) -> dict[tuple[int, int], TileObjects]:
        """All tiles.

        Raises:
            UserError: they were predicted in another way than here.
        """
        if self._heads != {plan}:
            raise UserError(
                f"{self._image.path}: its tiles were planned differently on different machines, which must have the "
                "same packages and weights"
            )
        return self._tiles

    def add(self, tile: TileObjects) -> None:
        """Nothing is kept: all are there."""
