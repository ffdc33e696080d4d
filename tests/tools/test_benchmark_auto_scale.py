"""Figures of tools/benchmark.py auto_scale, on discs that the stand-in finds exactly."""

import json

import cv2
import numpy as np
import pytest
from benchmarks.auto_scale import benchmark_auto_scale, measure
from detectron2.config import LazyCall as L
from disc_finder import LEARNED, DiscFinder, draw_discs
from omegaconf import OmegaConf

from maskrcnn_plus.data import InstanceMapper
from maskrcnn_plus.data.diameter import ScaleToDiameter
from maskrcnn_plus.inference.predictor import Predictor


@pytest.fixture
def predictor():
    mapper = L(InstanceMapper)(is_train=False, augmentations=[L(ScaleToDiameter)(diameter=LEARNED)])
    config = {"model": L(DiscFinder)(), "dataloader": {"test": {"mapper": mapper}}}
    return Predictor(OmegaConf.create(config, flags={"allow_objects": True}), "random", optimize=False)


@pytest.fixture
def folder(tmp_path):
    """Discs of 16 pixels, of 40 pixels, and an image with nothing in it, as label images."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for name, diameters in (("a", [16] * 12), ("b", [40] * 5), ("c", [])):
        image = draw_discs(240, 240, diameters)
        labels = cv2.connectedComponents((image[..., 0] > 115).astype(np.uint8))[1].astype(np.uint16)
        cv2.imwrite(str(tmp_path / f"images/{name}.png"), image)
        cv2.imwrite(str(tmp_path / f"labels/{name}.png"), labels)
    (tmp_path / "splits.json").write_text(json.dumps({"train": [], "val": ["a", "b", "c"]}))
    return tmp_path


def test_an_exact_model_is_right_at_every_size(predictor, folder, capsys):
    figures = measure(predictor, folder, (1.0, 2.0))
    for each in figures.values():
        assert len(each.counts) == 3
        assert np.abs(each.octaves).max() < 0.2
        assert len(each.octaves) == 2  # an image without objects has no diameter
        assert each.average_precision["AP50"] == 1
        assert all(0 < part < whole for part, whole in zip(each.estimating, each.predicting, strict=True))
    assert len(measure(predictor, folder, (1.0,), images=1)[1.0].counts) == 1
    benchmark_auto_scale(predictor, [str(folder)], (1.0,), None)
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    assert [cell.strip() for cell in row[1:3]] == [f"{folder.name} (3)", "1"]
    assert row[4].strip() == "1.000"
