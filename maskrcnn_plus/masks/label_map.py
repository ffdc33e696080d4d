"""Label image <-> COCO run-length encodings (RLE), never with an N x H x W array in between.

A label image holds 0 for background and a positive integer an object. A COCO RLE is `{"size": [H, W], "counts": str}`:
the lengths of alternating background and foreground runs of the column-major pixels, in the compressed form of the COCO
API (`maskApi.c`, `rleToString`), as `str` so that it goes into JSON as it is. pycocotools and hotcoco read it.

Shape shorthand: N objects, H x W pixels, R runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pycocotools.mask as coco_mask

from maskrcnn_plus.arrays import as_array
from maskrcnn_plus.rle import Runs, decode_runs, encode_runs, pixels_in_rows, ranges

if TYPE_CHECKING:
    from torch import Tensor


def label_map_to_rles(label_map: np.ndarray, label_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Encode chosen objects of a label image.

    One pass over the image finds the runs of all objects, so the cost does not grow with the number of objects.

    Args:
        label_map: [H, W] of an integer type, 0 = background.
        label_ids: the N values to encode, each positive, in any order.

    Returns:
        N RLEs, `counts` as str. An id that is absent from the image gives the RLE of an empty mask.

    Raises:
        TypeError: `label_map` is not of an integer type.
        ValueError: `label_map` is not [H, W], or an id is not positive.
    """
    label_map = np.asarray(label_map)
    if not np.issubdtype(label_map.dtype, np.integer):
        raise TypeError(f"A label image must have an integer type, got {label_map.dtype}.")
    if label_map.ndim != 2:
        raise ValueError(f"A label image must be [H, W], got shape {label_map.shape}.")
    if any(label_id <= 0 for label_id in label_ids):
        raise ValueError(f"Label ids must be positive (0 is background), got {min(label_ids)}.")
    height, width = label_map.shape
    pixels = label_map.ravel(order="F")  # [H, W] -> [W * H]
    starts = np.append(0, np.flatnonzero(pixels[1:] != pixels[:-1]) + 1)[: pixels.size]  # [R]
    ends = np.append(starts[1:], pixels.size)[: pixels.size]  # [R]
    labels = pixels[starts]  # [R]
    order = np.argsort(labels, kind="stable")  # runs of one object together, in image order
    labels = labels[order]
    first, last = (np.searchsorted(labels, label_ids, side) for side in ("left", "right"))  # [N]
    places, owners = ranges(first, last)
    chosen = order[places]
    sizes = np.full((len(first), 2), (height, width))
    return encode_runs(Runs(owners, starts[chosen], ends[chosen], sizes))


def rles_to_label_map(rles: Sequence[dict[str, Any]], scores: Iterable[float], height: int, width: int) -> np.ndarray:
    """Paint masks into one label image; where they overlap, the higher score wins, and of equal scores the earlier.

    Args:
        rles: N RLEs of size [height, width]; `counts` compressed (str or bytes) or a list of run lengths.
        scores: N finite numbers (a CPU tensor is fine).
        height: H in pixels.
        width: W in pixels.

    Returns:
        [H, W] uint16 (uint32 for more than 65535 masks): value k marks the k-th RLE counted from 1, 0 is background.
        A mask that is covered entirely by others leaves no pixel.

    Raises:
        ValueError: a malformed RLE, one of another size, or scores that are not N finite numbers.
    """
    runs, order = _checked(rles, scores, height, width)
    first = np.searchsorted(runs.owners, np.arange(len(rles) + 1)).tolist()
    starts, ends = runs.starts.tolist(), runs.ends.tolist()
    pixels = np.zeros(height * width, dtype=label_type(len(rles)))
    for index in order.tolist():
        for run in range(first[index], first[index + 1]):
            pixels[starts[run] : ends[run]] = index + 1
    return np.ascontiguousarray(pixels.reshape(width, height).T)  # [W * H] -> [H, W]


def label_bands(
    rles: Sequence[dict[str, Any]], scores: Iterable[float], height: int, width: int, rows: int
) -> Iterator[np.ndarray]:
    """The image that `rles_to_label_map` paints, in bands of at most `rows` rows, each [rows, W].

    Raises:
        ValueError: as `rles_to_label_map`.
    """
    runs, order = _checked(rles, scores, height, width)
    rank = np.argsort(order)
    owners, x, top, bottom = runs.columns()
    by_rank = np.argsort(rank[owners], kind="stable")
    owners, x, top, bottom = owners[by_rank], x[by_rank], top[by_rank], bottom[by_rank]
    for y in range(0, height, rows):
        band = np.zeros((min(rows, height - y), width), dtype=label_type(len(rles)))
        for pieces, row, column in pixels_in_rows(x, top, bottom, y, y + len(band)):
            band[row, column] = owners[pieces] + 1  # of equal places the last is kept
        yield band


def label_type(count: int) -> type[np.unsignedinteger]:
    """Type of a label image of `count` objects."""
    return np.uint16 if count <= np.iinfo(np.uint16).max else np.uint32


def _checked(
    rles: Sequence[dict[str, Any]], scores: Iterable[float], height: int, width: int
) -> tuple[Runs, np.ndarray]:
    """The runs of masks of one image, and the order [N] in which they are painted, the best last."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (len(rles),) or not np.isfinite(scores).all():
        raise ValueError(f"{len(rles)} masks need as many finite scores, got {scores.shape}: {scores.ravel()[:5]} ...")
    runs = decode_runs(rles)
    wrong = np.flatnonzero((runs.sizes != (height, width)).any(axis=1))
    if len(wrong):
        raise ValueError(f"RLE {wrong[0]} has size {rles[wrong[0]]['size']}, the image has [{height}, {width}].")
    return runs, np.argsort(-scores, kind="stable")[::-1]


def masks_to_rles(masks: Tensor | np.ndarray) -> list[dict[str, Any]]:
    """Encode dense masks, one at a time.

    Args:
        masks: [N, H, W] bool, or integers of which non-zero is foreground.

    Returns:
        N RLEs, `counts` as str.

    Raises:
        TypeError: masks of a floating type, such as probabilities that were not thresholded.
        ValueError: `masks` is not [N, H, W].
    """
    if len(masks.shape) != 3:
        raise ValueError(f"Masks must be [N, H, W], got shape {tuple(masks.shape)}.")
    rles = []
    for mask in masks:
        array = as_array(mask)  # [H, W]
        if array.dtype.kind not in "bui":
            raise TypeError(f"Masks must be bool or integers, got {array.dtype}: threshold probabilities first.")
        rle = coco_mask.encode(np.asfortranarray(array != 0, dtype=np.uint8))
        rles.append({**rle, "counts": rle["counts"].decode("ascii")})
    return rles
