"""The judge of tools/benchmark.py tiling: what it counts as agreement and as doubled."""

import importlib.util
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskrcnn_plus.inference.tiling import Tiling
from maskrcnn_plus.masks.label_map import masks_to_rles
from maskrcnn_plus.masks.measure import rle_boxes


@pytest.fixture(scope="module")
def tiling():
    path = Path(__file__).resolve().parents[2] / "tools" / "benchmarks" / "tiling.py"
    spec = importlib.util.spec_from_file_location("benchmark_tiling_under_test", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_mosaic_is_covered_once(tiling, tmp_path):
    rng = np.random.default_rng(0)
    names = []
    for index, shape in enumerate([(40, 60), (30, 30), (70, 50)]):
        names.append(str(tmp_path / f"{index}.png"))
        cv2.imwrite(names[-1], rng.integers(0, 255, shape, dtype=np.uint8))
    pieces = tiling._pack(names, 200, (0, 100))
    covered = np.zeros((200, 200), dtype=int)
    for piece in pieces:
        height, width = piece.pixels.shape
        assert piece.pixels.dtype == np.uint8
        covered[piece.y : piece.y + height, piece.x : piece.x + width] += 1
    assert covered.max() == 1
    assert covered.mean() > 0.5
    assert len(pieces) >= 12


def test_matches_are_counted_away_from_the_seams(tiling):
    ious = np.array([[0.9, 0.1, 0.0], [0.0, 0.45, 0.0], [0.0, 0.0, 0.5]])
    inside = np.ones(3, dtype=bool)
    assert tiling._matches(ious, inside.copy(), inside.copy()).tolist() == [2, 1, 1]
    assert tiling._matches(ious, np.array([True, True, False]), inside.copy()).tolist() == [1, 1, 1]
    assert tiling._matches(ious, inside.copy(), np.array([False, False, True])).tolist() == [2, 0, 1]
    assert tiling._matches(np.zeros((0, 2)), inside[:0].copy(), inside[:2].copy()).tolist() == [0, 2, 0]
    boxes = np.array([[32, 32, 60, 60], [31, 40, 60, 60], [40, 40, 69, 60], [40, 40, 68, 88]])
    assert tiling._away_from_seams(boxes, (120, 100)).tolist() == [True, False, False, True]


def test_doubles_are_pairs_in_an_overlap_that_the_image_alone_has_once(tiling):
    masks = np.zeros((5, 100, 100), dtype=bool)
    masks[0, 5:15, 45:60] = True  # in the overlap of columns 40..60
    masks[1, 5:15, 47:60] = True  # the same again
    masks[2, 20:30, 50:60] = True  # alone
    masks[3, 80:90, 80:90] = masks[4, 80:90, 80:90] = True  # a double far from any overlap
    rles = masks_to_rles(masks)
    pairs = tiling._doubles_at_borders(rles, rle_boxes(rles), 100, Tiling(60, 20, 1.0))
    assert [tuple(sorted(pair)) for pair in pairs] == [(0, 1)]
    once, twice = np.array([[1.0, 0.87]]), np.array([[1.0, 0.87], [0.8, 0.9]])
    assert tiling._also_alone({(0, 1)}, once, np.array([0, 1])) == set()
    assert tiling._also_alone({(0, 1)}, twice, np.array([0, 1])) == {(0, 1)}
    assert tiling._also_alone({(0, 1)}, twice[:, :1], np.array([0])) == set()
