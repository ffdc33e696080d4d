"""RLE <-> label image against pycocotools and against dense loops."""

import itertools
import json
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch

from maskrcnn_plus.masks.label_map import (
    label_bands,
    label_map_to_rles,
    masks_to_rles,
    rles_to_label_map,
)
from maskrcnn_plus.rle import canonical_rles, decode_lengths


def random_masks(rng, count, height, width):
    """[count, height, width] bool: rectangles, noise, full and empty masks."""
    masks = np.zeros((count, height, width), dtype=bool)
    for index, mask in enumerate(masks):
        kind = index % 4
        if kind == 0:
            y, x = rng.integers(0, height), rng.integers(0, width)
            mask[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)] = True
        elif kind == 1:
            mask[:] = rng.random((height, width)) < rng.random()
        elif kind == 2:
            mask[:, : rng.integers(0, width + 1)] = True  # runs that go on from one column to the next
    return masks


def pycocotools_rle(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_label_map_to_rles_equals_pycocotools_byte_for_byte(dtype):
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (1, 17), (23, 1), (31, 20), (64, 64)]:
        for density in (0.05, 0.5, 1.0):
            blocks = rng.integers(1, 9, size=(shape[0] // 4 + 1, shape[1] // 4 + 1)).repeat(4, 0).repeat(4, 1)
            label_map = (blocks[: shape[0], : shape[1]] * (rng.random(shape) < density)).astype(dtype)
            ids = [8, 1, 5, 120, 5]  # out of order, absent, twice
            assert label_map_to_rles(label_map, ids) == [pycocotools_rle(label_map == k) for k in ids]


def test_label_map_to_rles_of_views_and_of_no_ids():
    label_map = np.arange(12, dtype=np.uint16).reshape(3, 4) % 3
    for view in (label_map.T, label_map[::-1, ::2]):
        assert label_map_to_rles(view, [1, 2]) == [pycocotools_rle(view == k) for k in (1, 2)]
    assert label_map_to_rles(label_map, []) == []
    assert label_map_to_rles(np.zeros((0, 5), np.uint16), [3])[0]["size"] == [0, 5]


@pytest.mark.parametrize(
    ("label_map", "ids", "error", "text"),
    [
        (np.zeros((2, 2), np.float32), [1], TypeError, "integer type"),
        (np.zeros((2, 2, 3), np.uint8), [1], ValueError, r"\[H, W\]"),
        (np.zeros((2, 2), np.uint8), [1, 0], ValueError, "background"),
    ],
)
def test_label_map_to_rles_refuses(label_map, ids, error, text):
    with pytest.raises(error, match=text):
        label_map_to_rles(label_map, ids)


def test_many_objects_take_no_dense_stack():
    """2,500 objects in 1000 x 1000 pixels: the dense stack would take 2.5 GB."""
    side, step = 1000, 20
    rows = np.arange(side) // step
    label_map = (rows[:, None] * (side // step) + rows[None] + 1).astype(np.uint16)
    tracemalloc.start()
    rles = label_map_to_rles(label_map, range(1, 2501))
    back = rles_to_label_map(rles, np.ones(2500), side, side)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(back, label_map)
    assert peak < 64 * side * side


def test_run_lengths_equal_dense_runs():
    rng = np.random.default_rng(1)
    for mask in random_masks(rng, 60, 37, 29):
        pixels = mask.ravel(order="F")
        expected, value = [0], False
        for pixel in pixels:
            if pixel != value:
                expected.append(0)
                value = pixel
            expected[-1] += 1
        rle = pycocotools_rle(mask)
        assert decode_lengths([rle])[0].tolist() == expected
        assert decode_lengths([{**rle, "counts": rle["counts"].encode()}])[0].tolist() == expected
        assert decode_lengths([{**rle, "counts": expected}])[0].tolist() == expected
        assert canonical_rles([{**rle, "counts": expected}, rle]) == [rle, rle]


def test_run_lengths_of_a_large_image():
    """Runs of more than 2**15 pixels and large negative differences take several bytes."""
    mask = np.zeros((5000, 4000), dtype=np.uint8, order="F")
    mask[:, 1000:1500] = 1
    mask[2, 3000] = 1
    mask[4, 3000] = 1
    rle = coco_mask.encode(mask)
    assert decode_lengths([rle])[0].tolist() == [5000000, 2500000, 7500002, 1, 1, 1, 20000000 - 15000005]


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [4, 4], "counts": "~~"},
        {"size": [4, 4], "counts": "P"},  # says "more follows" and ends
        {"size": [4, 4], "counts": ""},
        {"size": [4, 4], "counts": "ooooooooo0"},
        {"size": [4, 5], "counts": [3, 13]},
        {"size": [4, 4], "counts": [20, -4]},
        {"size": [4], "counts": [4]},
        {"size": [4, 4], "counts": None},
        {"size": [4, 4], "counts": "äö"},
        {"counts": [16]},
        [16],
    ],
)
def test_run_lengths_refuse_a_malformed_rle(rle):
    with pytest.raises(ValueError, match="RLE"):
        decode_lengths([rle])[0]


def test_rles_to_label_map_equals_a_dense_loop():
    rng = np.random.default_rng(2)
    for count in (1, 2, 9, 30):
        masks = random_masks(rng, count, 19, 26)
        scores = rng.integers(0, 4, count) / 4  # many ties
        expected = np.zeros((19, 26), dtype=np.int64)
        best = np.full((19, 26), -1.0)
        for index, mask in enumerate(masks):
            wins = mask & (scores[index] > best)
            expected[wins], best[wins] = index + 1, scores[index]
        label_map = rles_to_label_map(masks_to_rles(masks), torch.from_numpy(scores), 19, 26)
        assert label_map.dtype == np.uint16
        assert np.array_equal(label_map, expected)


def test_bands_of_a_label_map_are_its_rows(monkeypatch):
    monkeypatch.setattr("maskrcnn_plus.rle.PIXELS_AT_ONCE", 60)
    rng = np.random.default_rng(3)
    for count, rows in itertools.product((0, 1, 9, 30), (1, 4, 19, 50)):
        rles, scores = masks_to_rles(random_masks(rng, count, 19, 26)), rng.integers(0, 4, count) / 4
        bands = list(label_bands(rles, scores, 19, 26, rows))
        assert {len(band) for band in bands[:-1]} <= {rows}
        whole = rles_to_label_map(rles, scores, 19, 26)
        assert np.concatenate(bands).dtype == whole.dtype
        assert np.array_equal(np.concatenate(bands), whole)
    with pytest.raises(ValueError, match="finite scores"):
        next(label_bands(rles, scores[1:], 19, 26, 4))


def test_rles_to_label_map_accepts_uncompressed_and_none():
    rles = [{"size": [2, 3], "counts": [2, 3, 1]}, {"size": [2, 3], "counts": [0, 6]}]
    assert rles_to_label_map(rles, [0.9, 0.1], 2, 3).tolist() == [[2, 1, 1], [2, 1, 2]]
    assert not rles_to_label_map([], [], 2, 3).any()


def test_rles_to_label_map_beyond_16_bits():
    rle = {"size": [1, 1], "counts": [0, 1]}
    label_map = rles_to_label_map([rle] * 65536, np.arange(65536), 1, 1)
    assert (label_map.dtype, label_map.item()) == (np.uint32, 65536)
    assert rles_to_label_map([rle] * 65535, np.arange(65535), 1, 1).dtype == np.uint16


@pytest.mark.parametrize(
    ("rles", "scores", "text"),
    [
        ([{"size": [3, 2], "counts": [6]}], [1.0], "RLE 0 has size"),
        ([{"size": [2, 3], "counts": [7]}], [1.0], "corrupt"),
        ([{"size": [2, 3], "counts": [6]}], [], "scores"),
        ([{"size": [2, 3], "counts": [6]}], [float("nan")], "finite"),
    ],
)
def test_rles_to_label_map_refuses(rles, scores, text):
    with pytest.raises(ValueError, match=text):
        rles_to_label_map(rles, scores, 2, 3)


def test_masks_to_rles_equals_pycocotools_for_arrays_and_tensors():
    masks = random_masks(np.random.default_rng(3), 12, 15, 11)
    expected = [pycocotools_rle(mask) for mask in masks]
    assert masks_to_rles(masks) == expected
    assert masks_to_rles(torch.from_numpy(masks)) == expected
    assert masks_to_rles(torch.from_numpy(masks).to(torch.uint8) * 255) == expected
    assert masks_to_rles(torch.from_numpy(masks.transpose(0, 2, 1).copy()).transpose(1, 2)) == expected
    assert masks_to_rles(torch.zeros(0, 15, 11, dtype=torch.bool)) == []
    assert json.loads(json.dumps(expected)) == expected


def test_masks_to_rles_refuses_probabilities_and_single_masks():
    with pytest.raises(TypeError, match="threshold"):
        masks_to_rles(torch.rand(2, 4, 4))
    with pytest.raises(ValueError, match=r"\[N, H, W\]"):
        masks_to_rles(torch.ones(4, 4, dtype=torch.bool))


def test_real_label_images_round_trip():
    folder = Path(__file__).resolve().parents[3] / "shared/data/nuclei_fluo/labels"
    if not folder.is_dir():
        pytest.skip(f"no real label images at {folder}")
    for path in sorted(folder.iterdir())[:5]:
        label_map = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        ids = range(1, int(label_map.max()) + 1)
        assert np.array_equal(
            rles_to_label_map(label_map_to_rles(label_map, ids), np.ones(len(ids)), *label_map.shape), label_map
        )
