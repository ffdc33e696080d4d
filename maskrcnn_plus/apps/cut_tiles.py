"""Large annotated images cut into tiles: a training reads a whole image for each crop, and evaluates it as a whole.

Shape shorthand: N objects of an image.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.masks import record_rles, rle_annotation
from maskrcnn_plus.data.windows import open_windows
from maskrcnn_plus.masks.measure import move_rles, rle_areas, rle_boxes

SMALLEST = 64
"""Side of the smallest tiles, pixels."""


def cut_images(records: Sequence[dict[str, Any]], side: int, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Cut images that are larger than a tile into tiles of about equal sizes, which do not overlap.

    An object on a cut is in all of its tiles, each with its part. Tiles without objects are left out where the image
    has some: large images are seldom annotated everywhere. The channels and the depth of the pixels stay; alpha goes.

    Args:
        records: Detectron2 dataset dicts that `check_dataset` has passed.
        side: longest side of a tile, pixels, at least `SMALLEST`.
        folder: where tiles are written, as NAME_yROW_xCOLUMN.png, or .tif where PNG has no such pixels.

    Returns:
        Dataset dicts with tiles in place of the images that were cut, and what was done, a sentence each.

    Raises:
        DataError: `side` is too small.
        ImageReadError: an image or a label image cannot be read.
    """
    if side < SMALLEST:
        raise DataError(f"Tiles of {side} pixels are too small to hold objects: at least {SMALLEST} are needed.")
    found, num_cut, num_tiles, num_empty = [], 0, 0, 0
    for index, record in enumerate(records):
        if max(record["height"], record["width"]) <= side:
            found.append(record)
            continue
        tiles = list(_tiles(record, side))
        kept = [each for each in tiles if each[2]["annotations"] or not record["annotations"]]
        target = folder / str(index)  # images of several folders may have one name
        target.mkdir(parents=True)
        with open_windows(record["file_name"]) as windows:
            for x, y, tile in kept:
                pixels = windows.read(x, y, tile["width"], tile["height"])  # [h, w, C]
                pixels = np.delete(pixels, list(windows.alpha or ()), axis=2)
                path = _write(pixels, target / f"{Path(record['file_name']).stem}_y{y:05d}_x{x:05d}")
                found.append({"file_name": path, "image_id": path, **tile})
        num_cut, num_tiles, num_empty = num_cut + 1, num_tiles + len(kept), num_empty + len(tiles) - len(kept)
    if not num_cut:
        return found, []
    empty = f"; {num_empty} others have no objects and were left out" if num_empty else ""
    return found, [f"{num_cut} images were cut into {num_tiles} tiles of at most {side} x {side} pixels{empty}."]


def _tiles(record: dict[str, Any], side: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """The tiles of an image: x and y of the upper left corner, pixels, height, width and annotations."""
    rles = record_rles(record)
    boxes = rle_boxes(rles)  # [N, 4]
    rows, columns = (_edges(record[name], side) for name in ("height", "width"))
    for (top, bottom), (left, right) in itertools.product(itertools.pairwise(rows), itertools.pairwise(columns)):
        size = bottom - top, right - left
        near = (boxes[:, :2] < [right, bottom]).all(axis=1) & (boxes[:, 2:] > [left, top]).all(axis=1)
        entries = itertools.compress(record["annotations"], near)
        parts = move_rles(list(itertools.compress(rles, near)), -left, -top, *size)
        annotations = [
            rle_annotation(part, entry["category_id"], entry.get("iscrowd", 0))
            for entry, part, area in zip(entries, parts, rle_areas(parts), strict=True)
            if area > 0
        ]
        yield left, top, {"height": size[0], "width": size[1], "annotations": annotations}


def _edges(length: int, side: int) -> list[int]:
    """Where a side of an image is cut, its ends included."""
    count = -(-length // side)
    return [length * k // count for k in range(count + 1)]


def _write(pixels: np.ndarray, path: Path) -> str:
    """Write an image [h, w, C]; the path with its extension."""
    channels = pixels.shape[2]
    if channels in (1, 3) and pixels.dtype in (np.uint8, np.uint16):
        path = path.with_name(f"{path.name}.png")
        path.write_bytes(cv2.imencode(".png", pixels[:, :, ::-1])[1])  # RGB -> BGR
    else:
        path = path.with_name(f"{path.name}.tif")
        planes = pixels.transpose(2, 0, 1) if channels > 1 else pixels[:, :, 0]
        axes = {"axes": "CYX"} if channels > 1 else None
        tifffile.imwrite(path, planes, compression="zlib", photometric="minisblack", metadata=axes, ome=channels > 1)
    return str(path)
