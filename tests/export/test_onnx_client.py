"""The reference client sees images as `maskrcnn_plus.runtime` does, and refuses what it does not know."""

import json
import runpy
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install -e '.[export]'")

from maskrcnn_plus.model_folder import Preprocessing, Resize
from maskrcnn_plus.runtime.preprocess import prepare_input

CLIENT = Path(__file__).resolve().parents[2] / "docs" / "onnx_client.py"
STATISTICS = {"pixel_mean": (0.0,) * 3, "pixel_std": (1.0,) * 3}


@pytest.fixture(scope="module")
def client():
    return runpy.run_path(str(CLIENT))


@pytest.mark.parametrize("percentiles", [None, (1.0, 99.8)])
@pytest.mark.parametrize(
    "resize",
    [
        Resize("none"),
        Resize("scale", 0.5),
        Resize("scale", 1.3, max_size=80),
        Resize("scale", 0.7, short_side=90),
        Resize("detectron2", short_side=40, max_size=66),
        Resize("detectron2", short_side=100, max_size=200),
        Resize("mmcv", short_side=60, max_size=30),
        Resize("mmcv", short_side=75, max_size=300),
    ],
)
@pytest.mark.parametrize("shape", [(61, 101, 3), (101, 61)])
def test_it_makes_the_same_input(client, shape, resize, percentiles):
    rules = Preprocessing(3, "BGR", resize, **STATISTICS, percentiles=percentiles)
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected, _ = prepare_input(image, rules)
    found = client["network_input"](
        image[..., ::-1] if len(shape) == 3 else image, json.loads(json.dumps(asdict(rules)))
    )
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    difference = np.abs(found - expected)
    assert difference.max() <= 1  # PIL's arithmetic is of integers
    assert (difference > 1e-3).mean() < 0.01


def test_what_it_does_not_know_is_refused(client, tmp_path):
    for select, pasting, rule in (
        ([0], "detectron2", "none"),
        (None, "torchvision", "none"),
        (None, "x", "torchvision"),
    ):
        content = {"postprocessing": {"mask_pasting": pasting}}
        content["preprocessing"] = {"select": select, "resize": {"rule": rule}}
        (tmp_path / "model.json").write_text(json.dumps(content))
        with pytest.raises(SystemExit, match=r"need maskrcnn_plus\.runtime"):
            client["main"](str(tmp_path), "a.png", str(tmp_path / "labels.png"))
