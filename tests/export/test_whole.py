"""Exported graphs find, in ONNX Runtime and in OpenVINO, the objects that the Predictor finds in PyTorch."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from same_objects import measure
from small_models import build_predictor, scoring_config, small_config, torchvision_config
from torch import nn

from maskrcnn_plus.apps import run_exported
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.export.whole import export_whole
from maskrcnn_plus.inference.optimize import optimize_for_inference
from maskrcnn_plus.model_folder import ModelFolderError, read_model_folder, write_model_folder
from maskrcnn_plus.results import FORMATS, write_results
from maskrcnn_plus.runtime import ExportedModel
from maskrcnn_plus.runtime.graphs import RUNTIMES

for _package in ("onnx", "onnxruntime", "openvino"):
    pytest.importorskip(_package, reason=f"{_package} is not installed: pip install -e '.[export]'")

CLIENT = Path(__file__).resolve().parents[2] / "docs" / "onnx_client.py"
SIZES = (((64, 80), 0), ((41, 190), 1), ((133, 77), 2))  # height and width, seed


def many_config():
    """Of 80 classes by torchvision's rules, up to 500 objects an image."""
    cfg = torchvision_config(classes=80, max_objects=500)
    cfg.model.proposal_generator.post_nms_topk = (400, 400)
    return cfg


def varying_config():
    """Of two classes, with room for more objects than there are, so that their number is that of the image."""
    cfg = scoring_config()
    cfg.dataset.max_objects = 200
    return cfg


KINDS = {"many": many_config, "varying": varying_config}


def draw_image(size, seed=0):
    """Blobs of uint8, three channels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (size[0] // 6 + 2, size[1] // 6 + 2, 3), dtype=np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def assert_same_objects(found, expected):
    """Boxes to 0.01 px, scores to 1e-4, masks to an IoU of 0.99, but for a twentieth that may change places."""
    assert abs(len(found) - len(expected)) <= len(expected) / 20
    if not len(expected):
        return
    boxes, scores, ious = measure(found, expected).T
    assert ((boxes < 0.01) & (scores < 1e-4) & (ious >= 0.99)).mean() >= 0.95


def assert_exported(folder, predictor, images):
    """In both runtimes the objects are those of PyTorch."""
    expected = [predictor.predict(image) for image in images]
    for runtime in RUNTIMES:
        model = ExportedModel(folder, threads=1, runtime=runtime)
        for image, objects in zip(images, expected, strict=True):
            assert_same_objects(model.predict(image), objects)
    return sum(map(len, expected))


@pytest.mark.parametrize("kind", KINDS)
def test_objects_are_those_of_pytorch(kind, tmp_path):
    predictor = build_predictor(KINDS[kind]())
    before = {key: value.clone() for key, value in predictor.model.state_dict().items()}
    folder = export_whole(predictor, tmp_path / "model")
    assert all(torch.equal(before[key], value) for key, value in predictor.model.state_dict().items())
    images = [draw_image(*each) for each in SIZES]
    assert assert_exported(folder, predictor, images) > 40
    numbers = {len(predictor.predict(image)) for image in images}
    assert max(numbers) == 500 if kind == "many" else len(numbers) > 1


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model of one class as ONNX, its Predictor and an image."""
    folder = tmp_path_factory.mktemp("exported")
    cfg = small_config("nuclei/mask_rcnn_plus", max_objects=30)
    cfg.model.min_mask_area, cfg.model.max_covered = 12, 0.8
    predictor = build_predictor(cfg)
    image = folder / "a.png"
    cv2.imwrite(str(image), draw_image((90, 120), 3))
    return export_whole(predictor, folder / "model"), predictor, image


def test_a_cascade_whose_small_and_covered_objects_are_dropped(exported):
    folder, predictor, image = exported
    images = [str(image), *(draw_image(size, seed + more) for more in (0, 10) for size, seed in SIZES)]
    assert assert_exported(folder, predictor, images) > 40
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor.model, "min_mask_area", 0)
        patch.setattr(predictor.model, "max_covered", 1.0)
        assert len(predictor.predict(images[1])) > len(ExportedModel(folder, threads=1).predict(images[1]))


def test_an_image_without_objects(tmp_path):
    predictor = build_predictor(small_config("nuclei/mask_rcnn_lite0_fpn"))
    predictor.model.proposal_generator.min_box_size = 1e4
    folder, image = export_whole(predictor, tmp_path), draw_image((50, 60))
    assert assert_exported(folder, predictor, [image]) == 0
    found = ExportedModel(folder, threads=1).predict(image)
    assert found.pred_boxes.tensor.shape == (0, 4)
    files = write_results(tmp_path / "out", "a", found, formats=["labels", "coco", "csv", "geojson"])
    assert not cv2.imread(str(files["labels"]), cv2.IMREAD_UNCHANGED).any()


def test_openvinos_own_format_with_weights_of_16_bits(exported, tmp_path):
    _, predictor, image = exported
    folder = export_whole(predictor, tmp_path, "openvino", "fp16")
    assert {path.name for path in folder.iterdir()} == {"model.xml", "model.bin", "model.json"}
    assert read_model_folder(folder).precision == "fp16"
    found, expected = ExportedModel(folder, threads=1).predict(str(image)), predictor.predict(str(image))
    distance = np.abs(expected.pred_boxes.tensor.numpy()[:, None] - found.pred_boxes.tensor[None]).max(2).min(1)
    assert np.median(distance) < 0.5


def test_results_are_written_without_pytorch_and_detectron2(exported, tmp_path):
    folder, predictor, image = exported
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'detectron2', 'timm', 'omegaconf', 'fvcore'): sys.modules[name] = None\n"
        "from maskrcnn_plus.apps.run_exported import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    formats = list(FORMATS)
    arguments = [str(folder), str(image), "--output", str(tmp_path / "out"), "--format", *formats]
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    expected = predictor.predict(str(image))
    assert f"1 images, {len(expected)} objects, 0 failed" in run.stdout
    written = json.loads((tmp_path / "out/coco/a.json").read_text())
    write_results(tmp_path / "torch", "a", expected, str(image), formats=formats)
    others = json.loads((tmp_path / "torch/coco/a.json").read_text())
    assert [each.keys() for each in written] == [each.keys() for each in others]
    np.testing.assert_allclose([each["score"] for each in written], [each["score"] for each in others], atol=1e-4)
    files = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "torch") for path in (tmp_path / "torch").rglob("*") if path.is_file()}


def test_the_reference_client_finds_the_same(exported, tmp_path, capsys):
    folder, _, image = exported
    runpy.run_path(str(CLIENT))["main"](str(folder), str(image), str(tmp_path / "labels.png"))
    model = ExportedModel(folder, threads=1)
    files = write_results(tmp_path, "a", model.predict(str(image)), formats=["labels"])
    ours, theirs = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (files["labels"], tmp_path / "labels.png"))
    assert ours.max() == theirs.max() == len(capsys.readouterr().out.splitlines()) > 5
    assert (ours != theirs).mean() < 0.002


def test_images_that_cannot_be_used_are_named(exported, tmp_path, caplog):
    folder, _, image = exported
    (tmp_path / "bad.png").write_bytes(b"no image")
    arguments = [str(folder), str(tmp_path / "bad.png"), str(image), "--output", str(tmp_path / "out")]
    assert run_exported.main(arguments) == 1
    assert "bad.png" in caplog.text
    assert run_exported.main([*arguments[:2], "--output", str(tmp_path / "out")]) == 2
    assert (tmp_path / "out/labels/a.png").is_file()


def test_graphs_that_cannot_be_loaded_are_named(exported, tmp_path, capsys):
    import onnx

    folder = tmp_path / "model"
    folder.mkdir()
    description = read_model_folder(exported[0])
    graph = onnx.load(exported[0] / "model.onnx")
    assert graph.opset_import[0].version == 18
    graph.opset_import[0].version = 999
    onnx.save(graph, folder / "model.onnx")
    write_model_folder(folder, description, ["model.onnx"])
    with pytest.raises(ModelFolderError, match=r"onnxruntime cannot load .*model\.onnx: .*made for another version"):
        ExportedModel(folder)
    (folder / "model.onnx").write_bytes(b"\0" * 1000)
    write_model_folder(folder, description, ["model.onnx"])
    with pytest.raises(ModelFolderError, match="onnxruntime cannot load"):
        ExportedModel(folder)
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'maskrcnn_plus[export]'")
    with pytest.raises(ModelFolderError, match=r"openvino cannot load .*model\.onnx: (?!Exception from)"):
        ExportedModel(folder, runtime="openvino")
    write_model_folder(folder, description, [])
    with pytest.raises(ModelFolderError, match="files are missing"):
        ExportedModel(folder)
    (folder / "model.json").unlink()
    assert run_exported.main([str(folder), "a.png", "--output", str(tmp_path)]) == 2
    assert "has no model.json" in capsys.readouterr().err


def test_what_cannot_be_exported_is_refused(tmp_path):
    predictor = build_predictor(small_config("nuclei/mask_rcnn_lite0_fpn"))
    with pytest.raises(UserError, match="a whole graph for onnx in int8 is not made; there are onnx in fp32"):
        export_whole(predictor, tmp_path, "onnx", "int8")

    class Bessel(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    predictor.model.roi_heads.box_head.add_module("bessel", Bessel())
    with pytest.raises(UserError, match=r"model\.roi_heads\.box_head\.bessel \(Bessel\) cannot be exported"):
        export_whole(predictor, tmp_path)
    del predictor.model.roi_heads.box_head.bessel
    optimize_for_inference(predictor.model)
    with pytest.raises(UserError, match="make the Predictor with optimize=False"):
        export_whole(predictor, tmp_path)
    assert not (tmp_path / "model.json").exists()


class OneSize(nn.Module):
    """A backbone that a trace takes for that of images 160 pixels wide."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.size_divisibility = backbone, backbone.size_divisibility

    def forward(self, x):
        return self.backbone(x if int(x.shape[-1]) == 160 else x * 1e-3)


def test_a_part_that_keeps_the_traced_size_is_found_out(tmp_path):
    predictor = build_predictor(small_config("nuclei/mask_rcnn_lite0_fpn"))
    predictor.model.backbone = OneSize(predictor.model.backbone)
    with pytest.raises(UserError, match=r"a part of it cannot be traced for all sizes \(model.backbone is a OneSize\)"):
        export_whole(predictor, tmp_path)
    assert not (tmp_path / "model.json").exists()
