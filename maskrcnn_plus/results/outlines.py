"""Masks to polygons that run along the edges of their pixels, so that a polygon covers exactly the pixels of its mask.

Pixel (column x, row y) is the square from (x, y) to (x + 1, y + 1). Parts that touch at a corner only are polygons of
their own, and no ring meets itself: the polygons are simple in the sense of the OGC, as GeoJSON readers want them.

Shape shorthand: N objects, K corners of a ring.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from maskrcnn_plus.rle import decode_runs, ranges

Polygon = list[np.ndarray]
"""Rings of corners [K, 2] (x, y), not closed: the outer ring, of positive area by the shoelace formula, then holes, of
negative area."""


def rle_polygons(rles: Sequence[dict[str, Any]]) -> Iterator[list[Polygon]]:
    """Polygons of each mask in turn, int64 corners in pixels of the image; none for an empty mask.

    Raises:
        ValueError: a malformed RLE.
    """
    for x, y, mask in rle_crops(rles):
        corner = np.array([x, y])
        yield [[ring + corner for ring in polygon] for polygon in mask_polygons(mask)] if mask.size else []


def rle_crops(rles: Sequence[dict[str, Any]]) -> Iterator[tuple[int, int, np.ndarray]]:
    """Each mask in turn within its box: x and y of its upper left pixel, and bool [h, w]; [0, 0] for an empty mask.

    Raises:
        ValueError: a malformed RLE.
    """
    owners, columns, tops, bottoms = decode_runs(rles).columns()
    bounds = np.searchsorted(owners, np.arange(len(rles) + 1))
    for first, last in itertools.pairwise(bounds):
        if first == last:
            yield 0, 0, np.zeros((0, 0), dtype=bool)
            continue
        x, top, bottom = columns[first:last], tops[first:last], bottoms[first:last]
        left, upper = int(x.min()), int(top.min())
        mask = np.zeros((bottom.max() - upper, x.max() - left + 1), dtype=bool)
        rows, piece = ranges(top - upper, bottom - upper)
        mask[rows, (x - left)[piece]] = True
        yield left, upper, mask


def mask_polygons(mask: np.ndarray) -> list[Polygon]:
    """Polygons of the parts of a mask [H, W] bool whose pixels hang together by their edges."""
    pieces = _pieces(mask)
    rings = [ring for loop in _loops(*pieces) for ring in _simple_rings(loop, pieces[0].tolist())]
    corners_of_edges, pixels_of_edges = pieces[0], pieces[2]
    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    polygons: dict[int, Polygon] = {}
    holes = []
    for ring in rings:
        corners, part = corners_of_edges[ring], int(parts[tuple(pixels_of_edges[ring[0]])])
        if double_area(corners) > 0:
            polygons[part] = [corners]
        else:
            holes.append((part, corners))
    for part, corners in holes:
        polygons[part].append(corners)
    return list(polygons.values())


def double_area(ring: np.ndarray) -> float:
    """Twice the area within a ring of corners (x, y) [K, 2]; negative for a hole's."""
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())


def _pieces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The E straight pieces of the outlines, the mask on their right hand side in an image (y down).

    Returns:
        int64 [E, 2] each: corner (x, y) where a piece starts, corner where it ends, and the pixel (row, column) of the
        mask beside its start and beside its end.
    """
    padded = np.pad(mask, 1)
    exposed = {  # rows along the pieces
        "top": mask & ~padded[:-2, 1:-1],
        "bottom": mask & ~padded[2:, 1:-1],
        "left": (mask & ~padded[1:-1, :-2]).T,
        "right": (mask & ~padded[1:-1, 2:]).T,
    }
    pieces = []
    for side, pixels in exposed.items():
        steps = np.diff(pixels.astype(np.int8), axis=1, prepend=0, append=0)
        line, begin = np.nonzero(steps == 1)
        end = np.nonzero(steps == -1)[1]
        edge = line + (side in ("bottom", "right"))
        low, high = np.stack([begin, edge], axis=1), np.stack([end, edge], axis=1)
        first, last = np.stack([line, begin], axis=1), np.stack([line, end - 1], axis=1)
        if side in ("left", "right"):
            low, high, first, last = (each[:, ::-1] for each in (low, high, first, last))
        pieces.append((low, high, first, last) if side in ("top", "right") else (high, low, last, first))
    return tuple(np.concatenate(each) for each in zip(*pieces, strict=True))


def _loops(starts: np.ndarray, ends: np.ndarray, first: np.ndarray, last: np.ndarray) -> list[list[int]]:
    """Closed loops of pieces, each starting where the one before ends and going round the same part."""
    horizontal = starts[:, 1] == ends[:, 1]
    follower = np.empty(len(starts), dtype=np.int64)
    for these, those in ((horizontal, ~horizontal), (~horizontal, horizontal)):
        these, those = np.flatnonzero(these), np.flatnonzero(those)  # at every corner a loop turns
        # Where two pixels meet at a corner, two pieces end and two start: a loop goes on along its own pixel.
        order = np.lexsort([*last[these].T, *ends[these].T])
        follower[these[order]] = those[np.lexsort([*first[those].T, *starts[those].T])]
    follower = follower.tolist()
    seen = [False] * len(follower)
    loops = []
    for start in range(len(follower)):
        loop, piece = [], start
        while not seen[piece]:
            seen[piece] = True
            loop.append(piece)
            piece = follower[piece]
        if loop:
            loops.append(loop)
    return loops


def _simple_rings(loop: list[int], starts: list[list[int]]) -> list[list[int]]:
    """Cut a loop of pieces where it comes back to a corner, into rings that visit each corner once."""
    rings, path, place = [], [], {}
    for piece in loop:
        corner = tuple(starts[piece])
        if corner in place:
            ring = path[place[corner] :]
            del path[place[corner] :]
            for each in ring:
                del place[tuple(starts[each])]
            rings.append(ring)
        place[corner] = len(path)
        path.append(piece)
    return [*rings, path]
