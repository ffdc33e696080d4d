"""A prediction by tiles that was stopped goes on after the tiles that are kept, to the same result."""

import json
import resource

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from maskrcnn_plus.data.windows import open_windows
from maskrcnn_plus.inference.background import find_background
from maskrcnn_plus.inference.kept_tiles import KeptTiles
from maskrcnn_plus.inference.tiling import predict_tiled
from maskrcnn_plus.masks.label_map import label_map_to_rles
from maskrcnn_plus.masks.measure import rle_boxes
from maskrcnn_plus.masks.rle_masks import RLEMasks

TILES = 12


class NoisyPredictor:
    """Finds pieces of the labels in a tile with scores and boxes that have all their digits; dies at a given tile."""

    def __init__(self, dies_at=None):
        self.mapper, self.model = type("Mapper", (), {"channels": 1})(), torch.nn.Identity()
        self.max_objects, self.calls, self.dies_at = None, 0, dies_at

    def get_scale(self, height, width):
        return 1.0

    def intensity_range(self, image):
        return None

    def predict(self, image, *, intensity_range=None):
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        self.calls += 1
        labels = image.reduced(1)[:, :, 0].astype(np.int32)
        ids = np.unique(labels[labels > 0])
        rles = label_map_to_rles(labels, ids)
        noise = torch.from_numpy(np.random.default_rng(ids).random((len(ids), 4)).astype(np.float32)) / 3
        return Instances(
            labels.shape,
            pred_boxes=Boxes(torch.from_numpy(rle_boxes(rles)).float() + noise),
            scores=0.6 + noise[:, 0],
            pred_classes=torch.from_numpy(ids % 3).long(),
            pred_masks_rle=RLEMasks(rles, labels.shape),
        )


@pytest.fixture
def image():
    labels = np.arange(1, 101, dtype=np.uint16).reshape(10, 10).repeat(21, axis=0).repeat(16, axis=1)
    labels[np.random.default_rng(0).random(labels.shape) < 0.3] = 0
    return labels


def predict(image, path, predictor=None, identity="slide 1", tile_size=80, **options):
    predictor = predictor or NoisyPredictor()
    with KeptTiles(path, identity) as kept:
        return predict_tiled(predictor, image, tile_size=tile_size, overlap=30, kept=kept, **options), predictor.calls


def fields(instances):
    masks = [rle["counts"] for rle in instances.pred_masks_rle]
    return instances.pred_boxes.tensor.tolist(), instances.scores.tolist(), instances.pred_classes.tolist(), masks


@pytest.mark.parametrize("stop", [0, 1, 7, TILES - 1])
def test_a_stopped_prediction_goes_on_to_the_same_result(image, tmp_path, stop):
    whole, calls = predict(image, tmp_path / "whole")
    assert (calls, len(whole)) == (TILES, 100)
    with pytest.raises(KeyboardInterrupt):
        predict(image, tmp_path / "tiles/a.jsonl", NoisyPredictor(dies_at=stop))
    again, calls = predict(image, tmp_path / "tiles/a.jsonl")
    assert calls == TILES - stop
    assert fields(again) == fields(whole)
    assert predict(image, tmp_path / "tiles/a.jsonl")[1] == 0
    assert fields(predict_tiled(NoisyPredictor(), image, tile_size=80, overlap=30)) == fields(whole)


def test_tiles_of_something_else_are_forgotten(image, tmp_path):
    path = tmp_path / "a.jsonl"
    assert predict(image, path)[1] == TILES
    assert predict(image, path, identity="slide 2")[1] == TILES
    assert predict(image, path, identity="slide 2", tile_size=100)[1] == 6
    assert predict(image[:-1], path, identity="slide 2", tile_size=100)[1] == 6
    assert predict(image[:-1], path, identity="slide 2", tile_size=100)[1] == 0


DAMAGES = {
    "cut in the last line": lambda lines: [*lines[:-1], lines[-1][:-20]],
    "last line break missing": lambda lines: [*lines[:-1], lines[-1][:-1]],
    "no JSON": lambda lines: [*lines[:-1], b"\0" * 50 + b"\n"],
    "a field missing": lambda lines: [*lines[:-1], b'{"x": 1}\n'],
    "a list": lambda lines: [*lines[:-1], b"[1, 2]\n"],
    "a broken mask": lambda lines: [*lines[:-1], _changed(lines[-1], counts=["~~~"] * 100)],
    "fewer boxes": lambda lines: [*lines[:-1], _changed(lines[-1], boxes=[[0, 0, 1, 1]])],
    "fractions": lambda lines: [*lines[:-1], _changed(lines[-1], x=0.5)],
}


def _changed(line, **values):
    return json.dumps({**json.loads(line), **values}).encode() + b"\n"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tile_is_predicted_again(image, tmp_path, damage):
    path = tmp_path / "a.jsonl"
    whole, _ = predict(image, path)
    before = path.read_bytes()
    path.write_bytes(b"".join(DAMAGES[damage](before.splitlines(keepends=True))))
    again, calls = predict(image, path)
    assert calls == 1
    assert fields(again) == fields(whole)
    assert path.read_bytes() == before


def test_a_full_disk_is_told_with_the_name_of_the_file_and_costs_no_tile_before_it(image, tmp_path):
    path = tmp_path / "a.jsonl"
    whole, _ = predict(image, path)
    length = path.stat().st_size
    path.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            predict(image, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.filename == str(path)
    again, calls = predict(image, path)
    assert 0 < calls < TILES
    assert fields(again) == fields(whole)


def test_tiles_of_background_are_skipped_without_losing_an_object(image, tmp_path, capsys):
    rng = np.random.default_rng(0)
    wide = np.zeros((400, 700), dtype=np.uint16)
    wide[20:230, 30:190] = image
    expected, calls = predict(wide, tmp_path / "a")
    found, few = predict(wide, tmp_path / "b", skip_background=True)
    assert fields(found) == fields(expected)
    assert few < calls / 2
    assert f"{calls - few} of {calls} tiles are background" in capsys.readouterr().err
    blank = np.full((400, 700), 7, dtype=np.uint16)
    assert predict(blank, tmp_path / "c", skip_background=True)[1] == 0
    bright = np.clip(rng.normal(235, 0.7, (256, 512, 3)), 0, 255).astype(np.uint8)  # glass in transmitted light
    bright[100:140, 60:130] = (190, 120, 180)
    bright[60:66, 300:306] = (120, 80, 160)  # a single nucleus
    corners = [(y, x) for y in (0, 128) for x in (0, 128, 256, 384)]
    with open_windows(bright) as windows:
        assert find_background(windows, corners, 128) == [False, False, False, True, False, False, True, True]
    assert len(predict_tiled(NoisyPredictor(), blank, tile_size=100, skip_background=True)) == 0
