"""Objects that were found in overlapping tiles of an image, merged to the objects of the image.

    tile A      [===============================]                          (one row of an image, seen from above)
    tile B                          [===============================]
    zone                            |<--------->|                          what both see
    object 1         (---)                                                 A alone has it
    object 2                      (------)                                 complete in A, cut by B's left border
    object 3                           (---)                               complete in both
    object 4                     (-----------------)                       larger than the zone: cut by both
    object 5                                 (------)                      complete in B, cut by A's right border

An *inner border* is an edge of a tile that is not an edge of the image.

1. An object is *cut* where its mask comes near an inner border, and *complete* otherwise.
2. Complete objects of two tiles that share half of the smaller one are one object: the better stays. Better is the
   score times the distance from the inner borders (up to `reach`), so that of equal scores the tile whose core (zones
   split in the middle) holds the object's centre wins, without a hard line that an object could fall through.
3. A cut object is dropped where complete objects of other tiles cover it by half (2 in B, 5 in A), and also where
   another tile, which sees the place from its inside, has nothing of the kind: such are slivers of objects.
4. Cut objects of two tiles whose pixels in the zone agree (IoU in the zone), each the other's best, are parts of one
   object, also through several tiles, and become their union: 4. Objects that agree in the zone, go on beyond it and
   do not cover half of each other are such parts too, even if their masks end short of the border.
5. A part that lies by half in a larger part or union of other tiles is dropped.

All this is within one class; objects of the same tile are never compared, as the detector has done that. An
object whose box is at most 0.9 * overlap - 4 pixels on each side is complete in at least one tile.

Masks are compared as RLEs of the zone. Time is linear in the number of tiles and of objects for a bounded number of
objects a tile, memory is that of the RLEs.

Shape shorthand: n objects of a tile, N of all tiles, P pairs of objects of different tiles that share pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from maskrcnn_plus.masks.measure import move_rles, rle_areas, rle_boxes, rle_overlaps, rle_union

SAME = 0.5
"""Share of an object from which on it is taken for (a part of) the object that covers it."""

AGREE = 0.4
"""IoU in the zone from which on two parts are of one object; touching objects share next to nothing there."""

_NO_PAIRS = np.zeros((5, 0), dtype=np.int64)


@dataclass
class TileObjects:
    """Objects of one tile; with x = y = 0 and the size of the image, those of the image.

    Attributes:
        x, y: the tile's upper left corner in the image, pixels.
        height, width: of the tile, pixels.
        boxes: [n, 4] xyxy in pixels of the tile.
        scores: [n].
        classes: [n] integers.
        rles: n RLEs of size [height, width].
    """

    x: int
    y: int
    height: int
    width: int
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    rles: Sequence[dict[str, Any]]


@dataclass
class _Pairs:
    """P pairs of the same class from different tiles: indices, shared pixels, pixels of each in their zone; all [P]."""

    first: np.ndarray
    second: np.ndarray
    shared: np.ndarray
    first_in_zone: np.ndarray
    second_in_zone: np.ndarray


def merge_tiles(tiles: Sequence[TileObjects], height: int, width: int, reach: float) -> TileObjects:
    """Merge the objects of overlapping tiles.

    Args:
        tiles: in any order; they may overlap in any way.
        height, width: of the image, pixels.
        reach: distance in pixels from an inner border from which on an object is no more trusted for being farther,
            about half of the overlap.

    Returns:
        The objects of the image in falling order of score. A merged object has the common box of its parts and the mean
        of their scores weighted by area. Objects without a pixel are left out.

    Raises:
        ValueError: a tile reaches beyond the image, or the image has more pixels than an RLE can count.
    """
    if height * width >= 2**32:
        raise ValueError(f"an image of {height} x {width} pixels exceeds the 2**32 - 1 that a COCO RLE can count")
    for tile in tiles:
        if min(tile.x, tile.y) < 0 or tile.x + tile.width > width or tile.y + tile.height > height:
            raise ValueError(
                f"tile {tile.width} x {tile.height} at {tile.x}, {tile.y} is not within {width} x {height}"
            )
    tiles = [_drop_empty(tile) for tile in sorted(tiles, key=lambda tile: (tile.y, tile.x))]
    if not any(len(tile.scores) for tile in tiles):
        return _nothing(height, width)
    offsets = np.cumsum([0] + [len(tile.scores) for tile in tiles])
    owners = np.repeat(np.arange(len(tiles)), np.diff(offsets))  # [N], the tile of each object
    areas = np.concatenate([rle_areas(tile.rles) for tile in tiles])  # [N]
    scores = np.concatenate([tile.scores for tile in tiles]).astype(np.float64)
    extents = [rle_boxes(tile.rles) for tile in tiles]  # of the masks, n x 4 each
    gaps = [_border_gaps(tile, extent, height, width) for tile, extent in zip(tiles, extents, strict=True)]
    clearance, cut = (np.concatenate(part) for part in zip(*gaps, strict=True))
    inside = np.zeros(len(areas), dtype=bool)  # of another tile, and not cut there
    for here, there in _overlapping(tiles):
        for one, other in ((here, there), (there, here)):
            offset = [tiles[one].x - tiles[other].x, tiles[one].y - tiles[other].y] * 2
            gap, cut_there = _border_gaps(tiles[other], extents[one] + offset, height, width)
            inside[offsets[one] : offsets[one + 1]] |= ~cut_there & (gap > 0)
    pairs = _pairs(tiles, extents, offsets)

    quality = scores * np.minimum(clearance / max(reach, 1e-9), 1)
    kept, groups = _resolve(pairs, owners, areas, quality, cut, inside)
    return _assemble(tiles, offsets, height, width, kept, groups[kept], scores, areas)


def _nothing(height: int, width: int) -> TileObjects:
    return TileObjects(0, 0, height, width, np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64), [])


def _drop_empty(tile: TileObjects) -> TileObjects:
    """The tile with only those objects whose mask has a pixel."""
    some = np.flatnonzero(rle_areas(tile.rles))
    boxes, scores, classes = (np.asarray(part)[some] for part in (tile.boxes, tile.scores, tile.classes))
    return replace(tile, boxes=boxes, scores=scores, classes=classes, rles=[tile.rles[k] for k in some])


def _border_gaps(tile: TileObjects, extents: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Distance [n] of masks from the nearest inner border in pixels (inf without one), and whether they are cut [n].

    The masks of a network are no finer than a share of their box, so that is how near "at the border" is.
    """
    left, top, right, bottom = extents.T
    gaps = np.stack([left, top, tile.width - right, tile.height - bottom])  # [4, n]
    inner = (tile.x > 0, tile.y > 0, tile.x + tile.width < width, tile.y + tile.height < height)
    gaps[~np.array(inner)] = np.inf
    sides = np.stack([right - left, bottom - top] * 2)  # [4, n], along the direction of each gap
    return gaps.min(axis=0), (gaps <= 2 + 0.05 * sides).any(axis=0)


def _overlapping(tiles: list[TileObjects]) -> Iterator[tuple[int, int]]:
    """The indices of every two tiles that overlap; tiles are in rising order of y."""
    tops = np.array([tile.y for tile in tiles])
    lefts = np.array([tile.x for tile in tiles])
    rights = lefts + np.array([tile.width for tile in tiles])
    for index, tile in enumerate(tiles):
        later = slice(index + 1, int(np.searchsorted(tops, tile.y + tile.height, side="left")))
        for other in np.flatnonzero((lefts[later] < rights[index]) & (rights[later] > lefts[index])).tolist():
            yield index, index + 1 + other


def _pairs(tiles: list[TileObjects], extents: list[np.ndarray], offsets: np.ndarray) -> _Pairs:
    """Compare the objects of every two tiles that overlap, in their zone."""
    columns = [_NO_PAIRS]
    for here, there in _overlapping(tiles):
        found = _zone_pairs(tiles[here], tiles[there], extents[here], extents[there])
        columns.append(found + np.array([[offsets[here]], [offsets[there]], [0], [0], [0]]))
    return _Pairs(*np.concatenate(columns, axis=1))


def _zone_pairs(a: TileObjects, b: TileObjects, extents_a: np.ndarray, extents_b: np.ndarray) -> np.ndarray:
    """The pairs of two tiles as int64 [5, P] in the order of `_Pairs`."""
    x, y = max(a.x, b.x), max(a.y, b.y)
    right, bottom = min(a.x + a.width, b.x + b.width), min(a.y + a.height, b.y + b.height)
    inside = []
    for tile, extents in ((a, extents_a), (b, extents_b)):
        low, high = np.array([x - tile.x, y - tile.y]), np.array([right - tile.x, bottom - tile.y])
        near = np.flatnonzero(((extents[:, :2] < high) & (extents[:, 2:] > low)).all(axis=1))
        if not len(near):
            return _NO_PAIRS
        rles = move_rles([tile.rles[k] for k in near], tile.x - x, tile.y - y, bottom - y, right - x)
        areas = rle_areas(rles)
        some = np.flatnonzero(areas)
        inside.append((near[some], [rles[k] for k in some], areas[some]))
    (near_a, rles_a, areas_a), (near_b, rles_b, areas_b) = inside
    shared = rle_overlaps(rles_a, rles_b, of_first=True) * areas_a[:, None]
    shared = np.rint(shared * (a.classes[near_a][:, None] == b.classes[near_b][None])).astype(np.int64)
    rows, columns = np.nonzero(shared)
    return np.stack([near_a[rows], near_b[columns], shared[rows, columns], areas_a[rows], areas_b[columns]])


def _resolve(
    pairs: _Pairs, owners: np.ndarray, areas: np.ndarray, quality: np.ndarray, cut: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Decide on all objects: the indices that are kept, and for each object [N] the number of its group."""
    first, second = pairs.first, pairs.second
    agreement = pairs.shared / (pairs.first_in_zone + pairs.second_in_zone - pairs.shared)
    share = pairs.shared / np.minimum(areas[first], areas[second])
    alive = ~(cut & inside)
    # What lies in the zone alone is seen by both tiles and no part of what goes on in the other.
    goes_on = (pairs.first_in_zone < 0.9 * areas[first]) & (pairs.second_in_zone < 0.9 * areas[second])
    parts = (agreement >= AGREE) & (share < SAME) & goes_on
    cut = cut.copy()
    cut[first[parts]] = cut[second[parts]] = True

    rivals = (share >= SAME) & ~cut[first] & ~cut[second]
    one, other = np.append(first[rivals], second[rivals]), np.append(second[rivals], first[rivals])
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(len(areas), len(areas))).tocsr()
    taken = np.zeros(len(areas), dtype=bool)
    complete = np.flatnonzero(~cut)
    for index in complete[np.argsort(-quality[complete], kind="stable")].tolist():
        taken[index] = not taken[graph.indices[graph.indptr[index] : graph.indptr[index + 1]]].any()
    alive[complete] &= taken[complete]

    covered = np.zeros(len(areas))
    for one, other in ((first, second), (second, first)):
        by_complete = cut[one] & taken[other]
        np.add.at(covered, one[by_complete], pairs.shared[by_complete])
    alive &= ~cut | (covered < SAME * areas)

    linked = np.flatnonzero((agreement >= AGREE) & cut[first] & cut[second] & alive[first] & alive[second])
    one, other, agreement = first[linked], second[linked], agreement[linked]
    mutual = _best(agreement, one, owners[other]) & _best(agreement, other, owners[one])
    one, other = one[mutual], other[mutual]
    links = coo_array((np.ones(len(one)), (one, other)), shape=(len(areas), len(areas)))
    groups = connected_components(links, directed=False)[1]  # [N]
    alive &= ~_find_contained(pairs, groups, areas, cut & alive)[groups]
    return np.flatnonzero(alive), groups


def _best(agreement: np.ndarray, one: np.ndarray, tile: np.ndarray) -> np.ndarray:
    """Whether each pair [P] is the best of those of the object `one` with objects of `tile`."""
    _, group = np.unique(np.stack([one, tile]), axis=1, return_inverse=True)
    best = np.zeros(len(one))
    np.maximum.at(best, group, agreement)
    return agreement >= best[group]


def _find_contained(pairs: _Pairs, groups: np.ndarray, areas: np.ndarray, eligible: np.ndarray) -> np.ndarray:
    """For each group, whether it lies by half in a larger group of cut objects that itself stays."""
    sizes = np.bincount(groups, weights=areas)  # [groups]; pixels that several parts share count several times
    one, other = groups[pairs.first], groups[pairs.second]
    swap = sizes[one] < sizes[other]
    large, small = np.where(swap, other, one), np.where(swap, one, other)
    close = eligible[pairs.first] & eligible[pairs.second] & (large != small) & (pairs.shared >= SAME * sizes[small])
    swallowed = np.zeros(len(sizes), dtype=bool)
    order = np.lexsort((small[close], -sizes[small[close]]))  # the larger first: what is swallowed swallows none
    for big, little in zip(large[close][order].tolist(), small[close][order].tolist(), strict=True):
        swallowed[little] |= not swallowed[big]
    return swallowed


def _assemble(
    tiles: list[TileObjects],
    offsets: np.ndarray,
    height: int,
    width: int,
    kept: np.ndarray,
    groups: np.ndarray,
    scores: np.ndarray,
    areas: np.ndarray,
) -> TileObjects:
    """Bring the kept objects into the image and unite those of one group (int [kept])."""
    if not len(kept):
        return _nothing(height, width)
    boxes, classes, rles = [], [], []
    bounds = np.searchsorted(kept, offsets)
    for tile, begin, end, offset in zip(tiles, bounds[:-1], bounds[1:], offsets[:-1], strict=True):
        indices = kept[begin:end] - offset  # within the tile; they rise, so the order of `kept` stays
        if not len(indices):
            continue
        boxes.append(np.asarray(tile.boxes, dtype=np.float64)[indices] + np.array([tile.x, tile.y] * 2))
        classes.append(np.asarray(tile.classes)[indices])
        rles += move_rles([tile.rles[k] for k in indices], tile.x, tile.y, height, width)
    boxes, classes = np.concatenate(boxes), np.concatenate(classes)
    _, starts, members = np.unique(groups, return_index=True, return_inverse=True)
    weights = np.bincount(members, weights=areas[kept])
    merged_scores = np.bincount(members, weights=areas[kept] * scores[kept]) / weights
    low, high = np.full((len(starts), 2), np.inf), np.full((len(starts), 2), -np.inf)
    np.minimum.at(low, members, boxes[:, :2])
    np.maximum.at(high, members, boxes[:, 2:])

    by_group = np.split(np.argsort(members, kind="stable"), np.cumsum(np.bincount(members))[:-1])
    order = np.argsort(-merged_scores, kind="stable")
    members = [[rles[k] for k in by_group[group]] for group in order.tolist()]
    merged = [parts[0] if len(parts) == 1 else rle_union(parts) for parts in members]
    boxes = np.concatenate([low, high], axis=1)[order]
    return TileObjects(0, 0, height, width, boxes, merged_scores[order], classes[starts][order], merged)
