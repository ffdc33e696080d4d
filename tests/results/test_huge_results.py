"""Results of images too large for memory: smaller pictures, label images in tiles, and no array of the image's size."""

import csv
import tracemalloc

import cv2
import numpy as np
import pytest
import tifffile
import torch
from detectron2.structures import Boxes, Instances

from maskrcnn_plus.data.windows import open_windows
from maskrcnn_plus.masks.measure import move_rles
from maskrcnn_plus.masks.rle_masks import RLEMasks
from maskrcnn_plus.results import FORMATS, write_results
from maskrcnn_plus.results.overlay import draw_overlay, make_picture

MEBI = 2**20


def squares(height, width, places, side=40):
    """Squares of `side` px whose upper left corners are at (y, x)."""
    square = {"size": [side, side], "counts": [0, side * side]}
    rles = [move_rles([square], x, y, height, width)[0] for y, x in places]
    instances = Instances((height, width), pred_masks_rle=RLEMasks(rles, (height, width)))
    instances.pred_boxes = Boxes(torch.tensor([[x, y, x + side, y + side] for y, x in places], dtype=torch.float32))
    instances.scores = torch.linspace(0.9, 0.5, len(places))
    instances.pred_classes = torch.zeros(len(places), dtype=torch.int64)
    return instances


@pytest.mark.parametrize("tile", [16, 64, 512])
@pytest.mark.parametrize("objects", [12, 70_000])
def test_label_tiles_are_the_label_image(tmp_path, monkeypatch, tile, objects):
    rng = np.random.default_rng(0)
    places = np.stack([rng.integers(0, 90, objects), rng.integers(0, 140, objects)], axis=1)
    instances = squares(120, 150, places.tolist()[:12], side=10)
    if objects > 12:  # more than 16 bits count: the same masks again and again, each below the one before
        instances = Instances.cat([instances] * (objects // 12))
        instances.scores = torch.linspace(1, 0, len(instances), dtype=torch.float64)
    small = write_results(tmp_path / "small", "a", instances[:12], formats=["labels"])["labels"]
    monkeypatch.setattr("maskrcnn_plus.results.labels.MAX_PIXELS", 120 * 150 - 1)
    monkeypatch.setattr("maskrcnn_plus.results.labels.TILE", tile)
    path = write_results(tmp_path, "a", instances, formats=["labels"])["labels"]
    assert path.name == "a.tif"
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages[0].is_tiled
        labels = tiff.asarray()
    assert labels.dtype == (np.uint16 if objects == 12 else np.uint32)
    assert np.array_equal(labels, cv2.imread(str(small), cv2.IMREAD_UNCHANGED))


def test_pictures_of_large_images_are_reduced_with_their_objects(monkeypatch):
    image = np.random.default_rng(1).integers(0, 60, (90, 123, 3), dtype=np.uint8)
    instances = squares(90, 123, [(9, 12), (60, 60)], side=30)
    with open_windows(image) as windows:
        shown, same = make_picture(windows, instances)
        assert np.array_equal(shown, image)
        assert same is instances
        monkeypatch.setattr("maskrcnn_plus.results.overlay.MAX_PIXELS", 30 * 41)
        shown, reduced = make_picture(windows, instances)
        assert shown.shape == (30, 41, 3)
        expected = squares(30, 41, [(3, 4), (20, 20)], side=10)
        assert list(reduced.pred_masks_rle) == list(expected.pred_masks_rle)
        changed = (draw_overlay(shown, reduced) != shown).any(axis=2)
        assert np.array_equal(changed, expected.pred_masks_rle.to_dense().any(dim=0).numpy())
        monkeypatch.setattr("maskrcnn_plus.results.overlay.MAX_SIDE", 20)
        assert make_picture(windows, instances)[0].shape == (13, 18, 3)


def test_memory_of_all_results_does_not_hold_the_image(tmp_path, monkeypatch):
    height, width = 12_000, 9_000
    pixels = tifffile.memmap(tmp_path / "huge.tif", shape=(height, width), dtype=np.uint8)  # a sparse file
    instances = squares(height, width, [(0, 0), (5990, 4000), (11960, 8960)])
    pixels[6000:6020, 4000:4040] = 100
    pixels.flush()
    del pixels
    monkeypatch.setattr("maskrcnn_plus.data.image_windows.CACHE_BYTES", 16 * MEBI)
    monkeypatch.setattr("maskrcnn_plus.results.table._BAND_PIXELS", MEBI)
    for module in ("overlay", "labels"):
        monkeypatch.setattr(f"maskrcnn_plus.results.{module}.MAX_PIXELS", 4 * MEBI)
    tracemalloc.start()
    written = write_results(tmp_path, "huge", instances, tmp_path / "huge.tif", formats=list(FORMATS))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * MEBI < height * width
    with open(written["csv"], newline="") as file:
        assert [float(row["mean_intensity"]) for row in csv.DictReader(file)] == [0, 50, 0]
    labels = tifffile.imread(written["labels"])
    assert (np.unique(labels).tolist(), labels[0, 0], labels[5990, 4000], labels[-1, -1]) == ([0, 1, 2, 3], 1, 2, 3)
    assert cv2.imread(str(written["overlay"])).shape[:2] == (2000, 1500)
    assert cv2.imread(str(written["background"])).shape[:2] == (2000, 1500)
    with open(written["cutouts"], newline="") as file:  # at the image's own pixels, to one of the reduced picture
        places = [(float(row["x"]), float(row["y"])) for row in csv.DictReader(file)]
    assert np.abs(np.subtract(places, [(0, 0), (4000, 5990), (8960, 11960)])).max() <= 6
