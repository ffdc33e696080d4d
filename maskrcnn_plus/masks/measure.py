"""Measures of masks straight from the runs of their COCO RLEs, and masks moved to another image.

A pixel covers [x, x + 1) x [y, y + 1): a mask of the first pixel alone has the box (0, 0, 1, 1) and the centroid
(0.5, 0.5).

Shape shorthand: N objects; an RLE is `{"size": [height, width], "counts": str}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask

from maskrcnn_plus.rle import Runs, canonical_rles, decode_runs, encode_runs, join_runs


def rle_areas(rles: Sequence[dict[str, Any]]) -> np.ndarray:
    """Pixels of each mask, int64 [N].

    Raises:
        ValueError: a malformed RLE.
    """
    runs = decode_runs(rles)
    return _sum(runs.owners, runs.ends - runs.starts, len(rles)).astype(np.int64)


def rle_boxes(rles: Sequence[dict[str, Any]]) -> np.ndarray:
    """Tight boxes, float64 xyxy [N, 4] in pixels, the far corner one beyond the last pixel; 0 where a mask is empty.

    Raises:
        ValueError: a malformed RLE.
    """
    runs = decode_runs(rles)
    height = runs.sizes[runs.owners, 0]
    left, top = np.divmod(runs.starts, height)
    right, bottom = np.divmod(runs.ends - 1, height)
    beyond = right > left  # runs on to the next column: reaches the last row of one and the first of the other
    top[beyond] = 0
    bottom = np.where(beyond, height, bottom + 1)
    boxes = np.zeros((len(rles), 4))
    first = np.flatnonzero(np.diff(runs.owners, prepend=-1))  # first run of each mask that has one
    if len(first):
        mins, maxs = np.minimum.reduceat, np.maximum.reduceat
        corners = [mins(left, first), mins(top, first), maxs(right + 1, first), maxs(bottom, first)]
        boxes[runs.owners[first]] = np.stack(corners, axis=1)
    return boxes


def rle_centroids(rles: Sequence[dict[str, Any]]) -> np.ndarray:
    """Centres of gravity, float64 [N, 2] (x, y) in pixels; NaN where a mask is empty.

    Raises:
        ValueError: a malformed RLE.
    """
    owners, x, top, bottom = decode_runs(rles).columns()
    length = bottom - top
    area = _sum(owners, length, len(rles))
    moments = np.stack(
        [_sum(owners, length * (x + 0.5), len(rles)), _sum(owners, length * (top + bottom) / 2, len(rles))]
    )
    with np.errstate(invalid="ignore"):
        return (moments / area).T  # [2, N] -> [N, 2]


def rle_perimeters(rles: Sequence[dict[str, Any]]) -> np.ndarray:
    """Perimeters in pixels, float64 [N], by the Cauchy-Crofton formula in 4 directions.

    The length of a curve is that of its crossings with all straight lines. Counted are those with the rows, columns and
    both diagonals of the grid: pi / 4 * (rows + columns + (diagonals of both) / sqrt(2)), each the number of runs of
    the mask along such lines. Without bias over orientations (a disc of radius r has 2 pi r), 5 % short for a rectangle
    along the axes. What lies outside the image counts as background; holes have a perimeter too.

    Raises:
        ValueError: a malformed RLE.
    """
    runs = decode_runs(rles)
    count = len(rles)
    owners, x, top, bottom = runs.columns()
    area = _sum(owners, bottom - top, count)
    if len(owners) == 0:
        return area
    # All pieces on one line: object after object, column after column, with an empty row and column on each side.
    stride = runs.sizes[:, 0] + 2
    before = np.append(0, np.cumsum(stride * (runs.sizes[:, 1] + 2)))
    starts = before[owners] + (x + 1) * stride[owners] + top + 1
    ends = starts + bottom - top
    covered = np.append(0, np.cumsum(ends - starts))

    def pixels_before(position: np.ndarray) -> np.ndarray:
        piece = np.searchsorted(starts, position, side="right")  # pieces that start there or before
        return covered[piece] - np.maximum(np.append(0, ends)[piece] - position, 0)

    def runs_along(shift: int) -> np.ndarray:
        """Pixels whose neighbour in the column to the left, `shift` rows below, is background: each starts a run."""
        left = shift - stride[owners]
        return area - _sum(owners, pixels_before(ends + left) - pixels_before(starts + left), count)

    columns = _sum(owners, np.ones(len(owners)), count)
    return np.pi / 4 * (runs_along(0) + columns + (runs_along(-1) + runs_along(1)) / np.sqrt(2))


def rle_ious(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]]) -> np.ndarray:
    """Intersection over union of each mask of `a` with each of `b`, float64 [A, B]; 0 where both are empty.

    Raises:
        ValueError: a malformed RLE, or masks of images of different sizes.
    """
    return np.nan_to_num(rle_overlaps(a, b), nan=0.0)


def rle_overlaps(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]], *, of_first: bool = False) -> np.ndarray:
    """Overlap of each mask of `a` with each of `b` by the COCO API, whatever the RLEs' origin.

    Args:
        a, b: A and B RLEs of images of one size.
        of_first: the shared pixels are divided by the area of the mask of `a`, as for COCO's crowd regions, instead of
            by the union.

    Returns:
        float64 [A, B]; what is divided by 0 is NaN.

    Raises:
        ValueError: a malformed RLE, or masks of images of different sizes.
    """
    rles = canonical_rles(a if b is a else [*a, *b])
    first, second = rles[: len(a)], rles[0 if b is a else len(a) :]
    sizes = sorted({tuple(rle["size"]) for rle in rles})
    if len(sizes) > 1:
        raise ValueError(f"masks to be compared must be of images of one size, got sizes {sizes}.")
    if not first or not second:
        return np.zeros((len(first), len(second)))
    return coco_mask.iou(first, second, [int(of_first)] * len(second))


def suppress_covered(
    rles: Sequence[dict[str, Any]], scores: np.ndarray, classes: np.ndarray, max_covered: float
) -> np.ndarray:
    """Choose the detections whose masks better ones leave free, class by class.

    A box around two touching objects beside the boxes of both passes any box NMS that leaves neighbours alone, but of
    its mask the two leave nothing.

    The best first, a detection is dropped where kept ones cover more than `max_covered` of its mask, the shares of
    several added up. Source: Kirillov et al., "Panoptic Segmentation" (2019), Sec. 7.

    Args:
        rles: N masks as RLEs of one size.
        scores: [N].
        classes: [N] ints.
        max_covered: share of a mask, in 0..1.

    Returns:
        Ascending indices of those that stay, int64. An empty mask is covered by nothing.
    """
    keep = np.ones(len(rles), dtype=bool)
    for each in np.unique(classes):
        members = np.flatnonzero(classes == each)
        members = members[np.argsort(-scores[members], kind="stable")]
        masks = [rles[k] for k in members]
        shares = np.nan_to_num(rle_overlaps(masks, masks, of_first=True))  # [n, n]: of the first in the second
        for k in range(1, len(members)):
            keep[members[k]] = shares[k, :k] @ keep[members[:k]] <= max_covered
    return np.flatnonzero(keep)


def rle_union(rles: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The pixels of any of the masks, which are of images of one size.

    Raises:
        ValueError: a malformed RLE, no mask, or masks of images of different sizes.
    """
    runs = decode_runs(rles)
    sizes = np.unique(runs.sizes, axis=0)
    if len(sizes) != 1:
        sizes = [*map(tuple, sizes.tolist())]
        raise ValueError(f"a union needs masks of images of one size, got sizes {sizes}.")
    order = np.argsort(runs.starts, kind="stable")
    starts, reached = runs.starts[order], np.maximum.accumulate(runs.ends[order])
    apart = starts[1:] > reached[:-1]
    opens, closes = np.append(True, apart)[: len(starts)], np.append(apart, True)[: len(starts)]
    return encode_runs(Runs(np.zeros(opens.sum(), dtype=np.int64), starts[opens], reached[closes], sizes))[0]


def move_rles(rles: Sequence[dict[str, Any]], x: int, y: int, height: int, width: int) -> list[dict[str, Any]]:
    """Place masks in another image: the pixel at column c and row r goes to column c + x and row r + y.

    Args:
        rles: N masks; sizes may differ.
        x, y: offset in pixels; negative offsets crop on the left and at the top.
        height, width: of the new image in pixels. What falls outside is cut off.

    Returns:
        N RLEs of size [height, width]; empty masks where nothing is left.

    Raises:
        ValueError: a malformed RLE, or a height or width that is not positive.
    """
    if height <= 0 or width <= 0:
        raise ValueError(f"move_rles: the new image of {height} x {width} pixels must have at least one.")
    owners, column, top, bottom = decode_runs(rles).columns()
    column, top, bottom = column + x, np.maximum(top + y, 0), np.minimum(bottom + y, height)
    inside = (top < bottom) & (column >= 0) & (column < width)
    owners, column, top, bottom = owners[inside], column[inside], top[inside], bottom[inside]
    sizes = np.broadcast_to(np.array([height, width], dtype=np.int64), (len(rles), 2))
    return encode_runs(join_runs(owners, column * height + top, column * height + bottom, sizes))


def reduce_rles(rles: Sequence[dict[str, Any]], factor: int) -> list[dict[str, Any]]:
    """Masks of an image of which every `factor` x `factor` pixels, from the upper left corner, become one.

    One pixel of such a block stands for all: that in its middle, or the last that the blocks at the border have too.

    Args:
        rles: N masks; sizes may differ.
        factor: at least 1.

    Returns:
        N RLEs of size [H / factor, W / factor], rounded up. Masks that lie between the pixels that count are empty.

    Raises:
        ValueError: a malformed RLE, or a factor below 1.
    """
    if factor < 1:
        raise ValueError(f"reduce_rles: factor is {factor}, it must be at least 1.")
    runs = decode_runs(rles)
    owners, x, top, bottom = runs.columns()
    middle = np.minimum(factor // 2, (runs.sizes - 1) % factor)[owners]  # [pieces, 2], (y, x)
    top, bottom = (-((middle[:, 0] - row) // factor) for row in (top, bottom))  # rounded up
    chosen = (x % factor == middle[:, 1]) & (top < bottom)
    owners, x, top, bottom = owners[chosen], x[chosen] // factor, top[chosen], bottom[chosen]
    sizes = -(-runs.sizes // factor)
    height = sizes[owners, 0]
    return encode_runs(join_runs(owners, x * height + top, x * height + bottom, sizes))


def _sum(owners: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Sum of the values of each object, float64 [N]."""
    return np.bincount(owners, weights=values, minlength=count)
