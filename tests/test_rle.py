"""Runs of many RLEs at once against pycocotools and dense loops; tests/masks/test_label_map.py has single ones."""

import numpy as np
import pycocotools.mask as coco_mask
import pytest

from maskrcnn_plus.rle import decode_lengths, decode_runs, encode_runs, join_runs, ranges, split_pieces


def random_rles(seed, count):
    """RLEs of images of different sizes: noise, rectangles, full and empty masks."""
    rng = np.random.default_rng(seed)
    rles = []
    for index in range(count):
        height, width = rng.integers(1, 40, 2)
        mask = np.asfortranarray(rng.random((height, width)) < rng.choice([0, 0.1, 0.6, 1]), dtype=np.uint8)
        if index % 3 == 0:
            mask[: rng.integers(0, height + 1)] = 0
        rle = coco_mask.encode(mask)
        rles.append({"size": [int(height), int(width)], "counts": rle["counts"].decode()})
    return rles


def test_decoding_and_encoding_many_round_trips():
    rles = random_rles(0, 400)
    runs = decode_runs(rles)
    assert encode_runs(runs) == rles
    assert encode_runs(decode_runs([])) == []
    for index in range(0, 400, 7):
        chosen = runs.owners == index
        pixels = np.zeros(np.prod(rles[index]["size"]), dtype=np.uint8)
        for start, end in zip(runs.starts[chosen], runs.ends[chosen], strict=True):
            assert end > start
            pixels[start:end] += 1
        assert np.array_equal(pixels, coco_mask.decode(rles[index]).ravel(order="F"))


def test_ranges_are_written_out_in_their_order():
    rng = np.random.default_rng(2)
    for count in (0, 1, 9):
        starts = rng.integers(-20, 20, count)
        ends = starts + rng.integers(0, 5, count)
        values, of = ranges(starts, ends)
        expected = [(value, k) for k in range(count) for value in range(starts[k], ends[k])]
        assert list(zip(values.tolist(), of.tolist(), strict=True)) == expected


def test_pieces_are_split_in_their_order_into_parts_of_bounded_size(monkeypatch):
    monkeypatch.setattr("maskrcnn_plus.rle.PIXELS_AT_ONCE", 50)
    lengths = np.random.default_rng(3).integers(1, 20, 40)
    parts = split_pieces(np.arange(100, 140), lengths)
    assert np.concatenate(parts).tolist() == list(range(100, 140))
    assert max(lengths[part - 100].sum() for part in parts) < 50 + 20
    assert [len(part) for part in split_pieces(np.arange(0), np.arange(0))] == [0]


def test_columns_hold_each_pixel_once():
    rles = random_rles(1, 60)
    owners, x, top, bottom = decode_runs(rles).columns()
    for index, rle in enumerate(rles):
        painted = np.zeros(rle["size"], dtype=np.uint8)
        for piece in np.flatnonzero(owners == index):
            assert 0 <= top[piece] < bottom[piece] <= rle["size"][0]
            painted[top[piece] : bottom[piece], x[piece]] += 1
        assert np.array_equal(painted, coco_mask.decode(rle))


def test_long_runs_are_compressed_as_pycocotools_does():
    """Runs on both sides of each power of 2, where one group of bits more is needed, up to the largest image."""
    sizes = sorted({size + more for size in 2 ** np.arange(1, 31) for more in (-1, 0, 1)} - {0})
    for first, second in zip(sizes, reversed(sizes), strict=True):
        lengths = [int(n) for n in (first, second, 1, second, first, 5)]
        size = [1, sum(lengths)]
        expected = coco_mask.frPyObjects({"size": size, "counts": lengths}, *size)["counts"].decode()
        rle = {"size": size, "counts": lengths}
        (encoded,) = encode_runs(decode_runs([rle]))
        assert encoded["counts"] == expected
        assert decode_lengths([encoded])[0].tolist() == lengths


def test_empty_runs_are_dropped_and_touching_ones_joined():
    rle = {"size": [2, 5], "counts": [1, 2, 0, 3, 1, 0, 2, 1, 0]}
    runs = decode_runs([rle])
    assert list(zip(runs.starts, runs.ends, strict=True)) == [(1, 6), (9, 10)]
    runs = join_runs(np.array([0, 0, 1]), np.array([0, 3, 6]), np.array([3, 6, 9]), np.full((2, 2), 3))
    assert list(zip(runs.owners, runs.starts, runs.ends, strict=True)) == [(0, 0, 6), (1, 6, 9)]  # of two objects


@pytest.mark.parametrize(
    "bad",
    [
        {"size": [4, 4], "counts": "~~"},
        {"size": [4, 4], "counts": "P"},
        {"size": [4, 4], "counts": "ooooooooo0"},
        {"size": [4, 5], "counts": [16]},
        {"size": [4, 4], "counts": [20, -4]},
        {"size": [4, 4], "counts": [[16]]},
        {"size": [-4, -4], "counts": [16]},
        {"size": [4, 4], "counts": None},
        {"counts": [16]},
    ],
)
def test_a_malformed_one_is_named(bad):
    good = [{"size": [4, 4], "counts": "`0"}, {"size": [4, 4], "counts": [3, 13]}]
    decode_runs(good)
    with pytest.raises(ValueError, match="RLE 2"):
        decode_runs([*good, bad, *good])
