"""Label image <-> COCO run-length encodings (RLE), never with an N x H x W array in between.

A label image holds 0 for background and a positive integer an object. A COCO RLE is `{"size": [H, W], "counts": str}`:
the lengths of alternating background and foreground runs of the column-major pixels, in the compressed form of the COCO
API (`maskApi.c`, `rleToString`), as `str` so that it goes into JSON as it is. pycocotools and hotcoco read it.

Shape shorthand: N objects, H x W pixels, R runs.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import torch


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
    starts, ends, labels = starts[order], ends[order], labels[order]

    rles = []
    for label_id in label_ids:
        first, last = np.searchsorted(labels, label_id, "left"), np.searchsorted(labels, label_id, "right")
        rles.append(_encode_runs(starts[first:last], ends[first:last], height, width))
    return rles


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
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (len(rles),) or not np.isfinite(scores).all():
        raise ValueError(f"{len(rles)} masks need as many finite scores, got {scores.shape}: {scores.ravel()[:5]} ...")
    pixels = np.zeros(height * width, dtype=np.uint16 if len(rles) <= np.iinfo(np.uint16).max else np.uint32)
    for index in np.argsort(-scores, kind="stable")[::-1].tolist():  # the best is painted last
        bounds = np.cumsum(run_lengths(rles[index]))
        if list(rles[index]["size"]) != [height, width]:
            raise ValueError(f"RLE {index} has size {rles[index]['size']}, the image has [{height}, {width}].")
        for start, end in zip(bounds[0::2].tolist(), bounds[1::2].tolist(), strict=False):
            pixels[start:end] = index + 1
    return np.ascontiguousarray(pixels.reshape(width, height).T)  # [W * H] -> [H, W]


def masks_to_rles(masks: torch.Tensor | np.ndarray) -> list[dict[str, Any]]:
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
        array = mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else mask  # [H, W]
        if array.dtype.kind not in "bui":
            raise TypeError(f"Masks must be bool or integers, got {array.dtype}: threshold probabilities first.")
        rles.append(_as_str(coco_mask.encode(np.asfortranarray(array != 0, dtype=np.uint8))))
    return rles


def run_lengths(rle: dict[str, Any]) -> np.ndarray:
    """Decode the run lengths of an RLE: background, foreground, background, ...

    Args:
        rle: `counts` compressed (str or bytes) or a list of run lengths already.

    Returns:
        [R] int64, none negative, which sum to H * W.

    Raises:
        ValueError: `rle` is no RLE of H x W pixels.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
        if isinstance(counts, str):
            counts = counts.encode("ascii")
        lengths = _decompress(counts) if isinstance(counts, bytes) else np.asarray(counts, dtype=np.int64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f'Not a COCO RLE ({{"size": [H, W], "counts": ...}}): {error!r}.') from error
    if lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != height * width:
        raise ValueError(f"The runs of an RLE do not add up to its {height} x {width} pixels: it is corrupt.")
    return lengths


def normalize_rle(rle: dict[str, Any]) -> dict[str, Any]:
    """Check an RLE and bring it into the one form that this package works with.

    Args:
        rle: `counts` compressed (str or bytes) or a list of run lengths.

    Returns:
        The same mask with compressed `counts` as str.

    Raises:
        ValueError: `rle` is no RLE of H x W pixels.
    """
    lengths = run_lengths(rle)
    height, width = (int(side) for side in rle["size"])
    return _as_str(coco_mask.frPyObjects({"size": [height, width], "counts": lengths.tolist()}, height, width))


def _encode_runs(starts: np.ndarray, ends: np.ndarray, height: int, width: int) -> dict[str, Any]:
    """Compress foreground runs [start, end) of the column-major pixels, which are sorted and do not touch."""
    bounds = np.stack([starts, ends], axis=1).reshape(-1)  # [R, 2] -> [2 * R]
    lengths = np.diff(bounds, prepend=0, append=height * width)
    if len(lengths) > 1 and lengths[-1] == 0:  # maskApi.c writes no empty last run
        lengths = lengths[:-1]
    return _as_str(coco_mask.frPyObjects({"size": [height, width], "counts": lengths.tolist()}, height, width))


def _as_str(rle: dict[str, Any]) -> dict[str, Any]:
    """Give an RLE of pycocotools, whose counts are bytes, counts that JSON can hold."""
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def _decompress(counts: bytes) -> np.ndarray:
    """Undo `rleToString` of maskApi.c: little-endian groups of 5 bits, and from the fourth run on differences.

    A byte minus 48 holds 5 bits of value and, as bit 5, "more follows"; bit 4 of the last byte of a number is its sign.
    """
    groups = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    last = (groups & 0x20) == 0
    if (groups < 0).any() or (groups > 63).any() or (groups.size and not last[-1]):
        raise ValueError("counts hold a character that no run length starts or ends with")
    firsts = np.flatnonzero(np.append(True, last[:-1])[: groups.size])  # first byte of each number
    place = np.arange(groups.size) - np.repeat(firsts, np.diff(firsts, append=groups.size))
    if (place > 6).any():
        raise ValueError("counts hold a number that is too long")
    lengths = np.add.reduceat((groups & 0x1F) << (5 * place), firsts) if groups.size else groups
    negative = (groups[last] & 0x10) != 0
    lengths = lengths - (negative.astype(np.int64) << (5 * (place[last] + 1)))
    # Run 3 is stored as its difference to run 1, run 4 to run 2, and so on; run 0 takes no part.
    lengths[1::2] = np.cumsum(lengths[1::2])
    lengths[2::2] = np.cumsum(lengths[2::2])
    return lengths
