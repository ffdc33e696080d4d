"""The runs of many COCO run-length encodings (RLE) at once, in NumPy: decoded, compressed, cut at columns.

An RLE holds the lengths of alternating background and foreground runs of the column-major pixels. Its compressed form
(`maskApi.c`, `rleToString`) is a string of numbers in groups of 5 bits, the lowest first, a group a byte: byte - 48
holds 5 bits of value and, as bit 5, "more follows"; bit 4 of a number's last byte is its sign. From the fourth run on
the number is the difference to the run two before.

Shape shorthand: N objects, R runs or foreground runs of all objects together, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PIXELS_AT_ONCE = 1 << 22
"""Pixels of masks that are written out one by one at a time."""

MAX_PIXELS = 2**32 - 1
"""Pixels of the largest image: run lengths of COCO's API are 32-bit."""

_LONGEST = 7  # groups of 5 bits that a number may have: 35 bits, enough for runs of 32


@dataclass(frozen=True)
class Runs:
    """Foreground runs of N objects: of one object sorted, none empty, and none that touches the next.

    Attributes:
        owners: int64 [R], object of each run, rising.
        starts, ends: int64 [R], run [start, end) of the column-major pixels of the object's image.
        sizes: int64 [N, 2], height and width of each object's image.
    """

    owners: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    sizes: np.ndarray

    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Cut the runs at the ends of columns.

        Returns:
            int64 [pieces] each: object, column x, first row, and the row after the last.
        """
        height = self.sizes[self.owners, 0]
        x, run = ranges(self.starts // height, (self.ends - 1) // height + 1)  # [R] -> [pieces]
        top = np.maximum(self.starts[run] - x * height[run], 0)
        bottom = np.minimum(self.ends[run] - x * height[run], height[run])
        return self.owners[run], x, top, bottom


def ranges(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Write out many ranges of integers [start, end), none with its end before its start, one after the other.

    Returns:
        The integers, and of each the index of its range.
    """
    count = ends - starts
    of = np.repeat(np.arange(len(count)), count)
    return np.arange(len(of)) + (starts - (np.cumsum(count) - count))[of], of


def split_pieces(pieces: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Parts of `pieces` in their order whose `lengths` add up to about 2**22 pixels, so that these fit into memory."""
    steps = np.searchsorted(np.cumsum(lengths), np.arange(0, lengths.sum(), PIXELS_AT_ONCE)[1:])
    return np.split(pieces, steps)


def pixels_in_rows(
    x: np.ndarray, top: np.ndarray, bottom: np.ndarray, first: int, last: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Write out the pixels of pieces of columns, as of `Runs.columns`, that lie in the rows [first, last), in parts.

    Yields:
        Of each pixel, in the order of the pieces: its piece, its row from `first` on, and its column.
    """
    upper, lower = np.maximum(top - first, 0), np.minimum(bottom, last) - first
    pieces = np.flatnonzero(upper < lower)
    for part in split_pieces(pieces, (lower - upper)[pieces]):
        rows, of = ranges(upper[part], lower[part])
        yield part[of], rows, x[part][of]


def decode_runs(rles: Sequence[dict[str, Any]]) -> Runs:
    """Decode N RLEs.

    Args:
        rles: `counts` compressed (str or bytes) or a list of run lengths; sizes may differ.

    Raises:
        ValueError: one is no RLE of H x W pixels; the message has its index.
    """
    lengths, first, sizes = decode_lengths(rles)
    number = np.diff(first)  # runs of each
    owners = np.repeat(np.arange(len(rles)), number)
    ends = _sums_within(lengths, first, owners)
    foreground = (np.arange(len(lengths)) - first[owners]) % 2 == 1
    foreground &= lengths > 0
    owners, ends, lengths = owners[foreground], ends[foreground], lengths[foreground]
    return join_runs(owners, ends - lengths, ends, sizes)


def join_runs(owners: np.ndarray, starts: np.ndarray, ends: np.ndarray, sizes: np.ndarray) -> Runs:
    """Make `Runs` of sorted runs, none empty, of which some may touch the next."""
    apart = (starts[1:] != ends[:-1]) | (owners[1:] != owners[:-1])
    opens, closes = np.append(True, apart)[: len(starts)], np.append(apart, True)[: len(starts)]
    return Runs(owners[opens], starts[opens], ends[closes], sizes)


def encode_runs(runs: Runs) -> list[dict[str, Any]]:
    """Compress N objects as pycocotools does, byte for byte, but for `counts`, which are str."""
    count = len(runs.sizes)
    pixels = runs.sizes[:, 0] * runs.sizes[:, 1]
    number = np.bincount(runs.owners, minlength=count)
    last_run = np.cumsum(number) - 1
    reached = np.where(number > 0, np.append(runs.ends, 0)[last_run], 0)  # end of an object's last foreground run
    tail = (reached < pixels) | (number == 0)  # maskApi.c writes no empty last run of background
    number = 2 * number + tail
    first = np.append(0, np.cumsum(number))

    bounds = np.empty(first[-1], dtype=np.int64)
    inner = np.ones(len(bounds), dtype=bool)
    inner[first[1:][tail] - 1] = False
    bounds[inner] = np.stack([runs.starts, runs.ends], axis=1).reshape(-1)  # [R, 2] -> [2 * R]
    bounds[~inner] = pixels[tail]
    lengths = np.diff(bounds, prepend=0)
    lengths[first[:-1]] = bounds[first[:-1]]

    place = np.arange(len(lengths)) - np.repeat(first[:-1], number)
    later = np.flatnonzero(place > 2)
    numbers = lengths.copy()
    numbers[later] -= lengths[later - 2]
    limits = 1 << (5 * np.arange(1, _LONGEST) - 1)  # what fits into 1, 2, ... groups with its sign
    groups = 1 + np.searchsorted(limits, np.where(numbers < 0, -numbers - 1, numbers), side="right")
    bytes_before = np.append(0, np.cumsum(groups))
    index = np.arange(bytes_before[-1]) - np.repeat(bytes_before[:-1], groups)
    values = (np.repeat(numbers, groups) >> (5 * index)) & 0x1F
    more = np.ones(len(values), dtype=bool)
    more[bytes_before[1:] - 1] = False
    text = (values + 48 + 32 * more).astype(np.uint8).tobytes().decode("ascii")
    edges = bytes_before[first].tolist()
    return [
        {"size": size, "counts": text[begin:end]}
        for size, begin, end in zip(runs.sizes.tolist(), edges[:-1], edges[1:], strict=True)
    ]


def decode_lengths(rles: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decode the run lengths of N RLEs: background, foreground, background, ...

    Args:
        rles: `counts` compressed (str or bytes) or a list of run lengths; sizes may differ.

    Returns:
        int64 lengths [R], none negative; int64 [N + 1], the first run of each object and the number of all; int64
        [N, 2], height and width of each.

    Raises:
        ValueError: one is no RLE of H x W pixels; the message has its index.
    """
    texts, plain, sizes = [], {}, np.zeros((len(rles), 2), dtype=np.int64)
    for index, rle in enumerate(rles):
        try:
            height, width = (int(side) for side in rle["size"])
            counts = rle["counts"]
            if height < 0 or width < 0 or height * width > MAX_PIXELS:
                raise ValueError(f"a size of {height} x {width} pixels; it must have 0 to {MAX_PIXELS}")
            sizes[index] = height, width
            if isinstance(counts, str):
                counts = counts.encode("ascii")
            if not isinstance(counts, bytes):
                plain[index] = _run_lengths(counts)
                counts = b""
            texts.append(counts)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            form = '{"size": [H, W], "counts": ...}'
            raise ValueError(f"{_name(index, rles)} has not the form {form} of COCO: {error!r}.") from error
    lengths, first = _decompress(texts)
    if plain:
        parts = [plain.get(i, lengths[first[i] : first[i + 1]]) for i in range(len(rles))]
        lengths, first = np.concatenate(parts), np.append(0, np.cumsum([len(part) for part in parts]))
    totals = np.diff(np.append(0, np.cumsum(lengths))[first])
    pixels = sizes[:, 0] * sizes[:, 1]
    wrong = totals != pixels
    # Sums of numbers that are all within the image cannot overflow and come out right by chance.
    outside = np.flatnonzero((lengths < 0) | (lengths > np.repeat(pixels, np.diff(first))))
    wrong[np.searchsorted(first, outside, side="right") - 1] = True
    if wrong.any():
        index = int(np.argmax(wrong))
        height, width = sizes[index].tolist()
        raise ValueError(
            f"The runs of {_name(index, rles)} do not add up to its {height} x {width} pixels (they add up to "
            f"{totals[index]}): it is corrupt."
        )
    return lengths, first, sizes


def canonical_rles(rles: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Check RLEs of any origin, and write them as pycocotools does: the only form that it can be given.

    pycocotools reads and writes beyond its memory where a string ends within a number, where runs do not add up to the
    image, and where runs of length 0 outnumber its pixels.

    Args:
        rles: `counts` compressed (str or bytes) or a list of run lengths; sizes may differ.

    Returns:
        The same masks, `counts` compressed as str, and no run but the first of length 0.

    Raises:
        ValueError: one is no RLE of H x W pixels; the message has its index.
    """
    return encode_runs(decode_runs(rles))


def _run_lengths(counts: Any) -> np.ndarray:
    """Run lengths that are not compressed, int64 [R]."""
    values = np.asarray(counts)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iufU"):
        raise ValueError("counts are not a list of run lengths")
    lengths = values.astype(np.float64 if values.dtype.kind in "fU" else values.dtype)
    if not ((lengths >= 0) & (lengths <= MAX_PIXELS)).all() or not (lengths == np.rint(lengths)).all():
        raise ValueError(f"counts hold something else than whole numbers in 0..{MAX_PIXELS}")
    return lengths.astype(np.int64)


def _decompress(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Undo `rleToString`: run lengths [R] of N strings, and the first run of each [N + 1]."""
    groups = np.frombuffer(b"".join(texts), dtype=np.uint8).astype(np.int64) - 48
    edges = np.append(0, np.cumsum([len(text) for text in texts], dtype=np.int64))
    last = (groups & 0x20) == 0
    ends = edges[1:][np.diff(edges) > 0]
    bad = (groups < 0) | (groups > 63)
    bad[ends - 1] |= ~last[ends - 1]
    firsts = np.flatnonzero(np.append(True, last[:-1])[: groups.size])  # first byte of each number
    place = np.arange(groups.size) - np.repeat(firsts, np.diff(firsts, append=groups.size))
    bad |= place >= _LONGEST
    if bad.any():
        index = int(np.searchsorted(edges, np.argmax(bad), side="right")) - 1
        raise ValueError(f"The counts of {_name(index, texts)} hold a character or a number that no run length has.")
    numbers = np.add.reduceat((groups & 0x1F) << (5 * place), firsts) if groups.size else groups
    negative = (groups[last] & 0x10) != 0
    numbers = numbers - (negative.astype(np.int64) << (5 * (place[last] + 1)))

    first = np.append(0, np.cumsum(last))[edges]  # numbers before each string
    owners = np.repeat(np.arange(len(texts)), np.diff(first))
    place = np.arange(len(numbers)) - first[owners]
    # Run 3 is stored as its difference to run 1, run 4 to run 2, and so on; run 0 takes no part.
    for chosen in (place % 2 == 1, (place % 2 == 0) & (place > 0)):
        of = owners[chosen]
        numbers[chosen] = _sums_within(numbers[chosen], np.searchsorted(of, np.arange(len(texts) + 1)), of)
    return numbers, first


def _sums_within(values: np.ndarray, first: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Running sums [R] of the values of each object, of which `first` [N + 1] is the first."""
    sums = np.append(0, np.cumsum(values))
    return sums[1:] - sums[first[owners]]


def _name(index: int, of: Sequence[Any]) -> str:
    """How an error names an RLE."""
    return f"RLE {index}" if len(of) > 1 else "the RLE"


def encode_windows(
    windows: Iterable[tuple[np.ndarray, int, int] | None], height: int, width: int
) -> list[dict[str, Any]]:
    """Encode masks that are given in windows of their image.

    Args:
        windows: N of bool [h, w] with x and y of its first pixel; None for an empty mask.
        height, width: of the image in pixels, in which the windows lie.

    Returns:
        N RLEs of size [height, width].
    """
    owners, starts, ends, count = [], [], [], 0
    for index, window in enumerate(windows):
        count += 1
        if window is None:
            continue
        mask, x, y = window
        column = np.pad(mask.T.astype(np.int8), ((0, 0), (1, 1)))  # [h, w] -> [w, h + 2]
        change = np.diff(column, axis=1)
        for bounds, sign in ((starts, 1), (ends, -1)):
            columns, rows = np.nonzero(change == sign)
            bounds.append((x + columns) * height + y + rows)
        owners.append(np.full(len(starts[-1]), index))
    none = [np.zeros(0, dtype=np.int64)]
    sizes = np.broadcast_to(np.array([height, width], dtype=np.int64), (count, 2))
    return encode_runs(join_runs(*(np.concatenate(none + part) for part in (owners, starts, ends)), sizes))
