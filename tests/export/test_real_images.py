"""In photographs of 80 classes and in micrographs of nuclei all exported forms find what PyTorch finds."""

import json
from pathlib import Path

import pytest
from hybrid_models import coco_config, save_checkpoint
from same_objects import assert_same

from maskrcnn_plus.checkpoints.description import read_description
from maskrcnn_plus.inference.predictor import Predictor

for _package in ("onnx", "onnxruntime", "openvino"):
    pytest.importorskip(_package, reason=f"{_package} is not installed: pip install -e '.[export]'")

from maskrcnn_plus.export.hybrid import HybridModel  # noqa: E402
from maskrcnn_plus.export.whole import export_whole  # noqa: E402
from maskrcnn_plus.runtime import ExportedModel  # noqa: E402
from maskrcnn_plus.runtime.graphs import RUNTIMES  # noqa: E402

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
DIAMETER = 20.0  # of nuclei, pixels


def export_all(weights, place, **options):
    """The model in PyTorch, one graph in both runtimes, and graphs with operators between them, by name."""
    plain = Predictor(weights, device="cpu", optimize=False, **options)
    folder = export_whole(plain, place / "whole")
    HybridModel(plain, read_description(weights)).write(place / "hybrid", "fp32")
    models = {runtime: ExportedModel(folder, threads=1, runtime=runtime) for runtime in RUNTIMES}
    return Predictor(weights, device="cpu", **options), {**models, "hybrid": Predictor(place / "hybrid", **options)}


def assert_all_find_the_same(original, exported, images, least):
    """At least `least` objects."""
    expected = [original.predict(image) for image in images]
    assert sum(map(len, expected)) >= least
    for model in exported.values():
        assert_same([model.predict(image) for image in images], expected)


def coco_model(place):
    """A small network of random weights for photographs."""
    cfg = coco_config("mask_rcnn_mobile")
    cfg.dataloader.test.mapper.augmentations[0].update(short_edge_length=200, max_size=320)
    return save_checkpoint(place / "model.pth", cfg)


@pytest.mark.skipif(not (DATA / "coco_tiny").is_dir(), reason="the photographs of coco_tiny are not there")
def test_photographs_of_80_classes(tmp_path):
    images = sorted(map(str, (DATA / "coco_tiny/images").iterdir()))[:3]
    assert_all_find_the_same(*export_all(coco_model(tmp_path), tmp_path), images, least=50)


@pytest.mark.skipif(not (DATA / "nuclei_fluo").is_dir(), reason="the micrographs of nuclei_fluo are not there")
def test_nuclei_by_the_shipped_model_at_a_diameter(tmp_path):
    names = json.loads((DATA / "nuclei_fluo/splits.json").read_text())["val"][:2]
    images = [str(DATA / f"nuclei_fluo/images/{name}.png") for name in names]
    assert_all_find_the_same(*export_all("maskrcnn_plus://nuclei", tmp_path, diameter=DIAMETER), images, least=20)
