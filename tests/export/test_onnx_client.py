"""The reference client sees images as `maskrcnn_plus.runtime` does, and refuses what it does not know."""

import json
import runpy
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("shape", [(61, 101, 3), (101, 61)])
def test_it_makes_the_same_input(client, shape, channels, resize, percentiles):
    order = "BGR" if channels == 3 else "L"
    rules = Preprocessing(channels, order, resize, **STATISTICS, percentiles=percentiles)
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


def test_photographs_are_turned_as_their_exif_data_say_and_what_is_none_is_named(client, tmp_path, monkeypatch):
    rules = Preprocessing(3, "RGB", Resize("none"), **STATISTICS, select=None)
    content = {"preprocessing": asdict(rules), "postprocessing": {"mask_pasting": "detectron2"}}
    (tmp_path / "model.json").write_text(json.dumps(content))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    image.save(tmp_path / "upright.jpg", exif=(exif := Image.Exif()))
    exif[0x0112] = 6  # turned by a quarter, as of a phone
    image.save(tmp_path / "phone.jpg", exif=exif)
    seen = []
    main = client["main"]
    monkeypatch.setitem(main.__globals__, "network_input", lambda image, rules: seen.append(image.shape) or 1 / 0)
    for name, shape in (("upright.jpg", (20, 30, 3)), ("phone.jpg", (30, 20, 3))):
        with pytest.raises(ZeroDivisionError):
            main(str(tmp_path), str(tmp_path / name), "labels.png")
        assert seen[-1] == shape
    with pytest.raises(SystemExit, match=r"gone\.png cannot be read"):
        main(str(tmp_path), str(tmp_path / "gone.png"), "labels.png")
