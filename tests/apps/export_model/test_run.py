"""The export as a whole: its gate, its reports, and its exit code."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from hybrid_models import save_checkpoint, tiny_config
from PIL import Image
from same_objects import assert_same

from maskrcnn_plus.apps.export_model.data import folder_images
from maskrcnn_plus.config import get_config
from maskrcnn_plus.data.diameter import ScaleToDiameter
from maskrcnn_plus.device import SATURATES, saturates
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.model_folder import is_model_folder

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'maskrcnn_plus[export]'")

from maskrcnn_plus.apps.export_model import run  # noqa: E402
from maskrcnn_plus.export.hybrid import HybridModel  # noqa: E402
from maskrcnn_plus.runtime import ExportedModel  # noqa: E402

OWN_BACKBONE = """
from hybrid_models import tiny_config
from maskrcnn_plus.backbones import TimmBackbone

class OwnBackbone(TimmBackbone):
    def forward(self, x):
        return {name: feature.sin() for name, feature in super().forward(x).items()}

config = tiny_config("mask_rcnn_lite0_fpn")
model, dataset, dataloader, train = config.model, config.dataset, config.dataloader, config.train
model.backbone.bottom_up._target_ = OwnBackbone
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint, and images whose objects are what it finds in them, in COCO's format."""
    place = tmp_path_factory.mktemp("trained")
    weights = save_checkpoint(place / "model.pth", tiny_config("mask_rcnn_lite0_fpn"))
    predictor, rng = Predictor(weights), np.random.default_rng(0)
    (place / "data" / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(1, 4):
        small = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
        pixels = np.kron(small, np.ones((8, 8, 1), np.uint8))
        path = place / "data" / "images" / f"{number}.png"
        Image.fromarray(pixels).save(path)
        images.append({"id": number, "file_name": path.name, "height": 64, "width": 96})
        found = predictor.predict(str(path))
        areas = found.pred_masks_rle.to_dense().flatten(1).sum(1)
        for k in torch.where(areas > 20)[0].tolist():
            x0, y0, x1, y1 = found.pred_boxes.tensor[k].tolist()
            rle = list(found.pred_masks_rle)[k]
            counts = rle["counts"].decode() if isinstance(rle["counts"], bytes) else rle["counts"]
            annotation = {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0, "area": float(areas[k])}
            annotation |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": int(found.pred_classes[k]) + 1}
            annotations.append({**annotation, "segmentation": {"size": [64, 96], "counts": counts}})
    categories = [{"id": 1, "name": "round"}, {"id": 2, "name": "long"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (place / "data" / "annotations.json").write_text(json.dumps(content))
    assert len(annotations) > 10
    return weights, place / "data"


@pytest.fixture
def tool():
    path = Path(__file__).resolve().parents[3] / "tools" / "export.py"
    spec = importlib.util.spec_from_file_location("export_tool", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_weights(layer):
    """The constant that a layer's weights are made of."""
    while layer.get_type_name() != "Constant":
        layer = layer.input_value(layer.get_type_name().endswith("Convolution")).get_node()
    return layer


def test_8_bits_are_8_bits_and_find_nearly_the_same(trained, tmp_path):
    pytest.importorskip("nncf", reason="NNCF is not installed: pip install 'maskrcnn_plus[export]'")
    weights, data = trained
    options = {"precision": "int8", "calibrate": data / "images", "gate": data, "max_drop": 1.0}  # random weights
    result = run.export_model(weights, tmp_path / "int8", **options, progress=lambda _: None)
    assert result.passed
    assert result.comparison.figures["original"]["mask AP"] > 0.9  # its own detections are the truth
    assert result.comparison.paired + result.comparison.lost > 10
    assert (SATURATES in " ".join(result.notes)) == saturates()

    report = json.loads((tmp_path / "int8" / "export_report.json").read_text())
    assert report["comparison"]["drop"]["mask AP"] == pytest.approx(result.comparison.drop["mask AP"])
    assert "Objects that changed" in (tmp_path / "int8" / "export_report.html").read_text()

    described = json.loads((tmp_path / "int8" / "model.json").read_text())
    quantised = [part for part in described["details"]["parts"] if part["precision"] == "int8"]
    assert described["precision"] == "int8"
    assert quantised[0]["module"] == "backbone"
    body = Predictor(weights, device="cpu", optimize=False).model.backbone
    assert (tmp_path / "int8" / "body.bin").stat().st_size < 0.5 * sum(4 * each.numel() for each in body.parameters())
    graph = openvino.Core().read_model(str(tmp_path / "int8" / "body.xml"))
    kinds = [operator.get_type_name() for operator in graph.get_ops()]
    layers = [each for each in graph.get_ops() if each.get_type_name() in ("Convolution", "GroupConvolution")]
    weights_ = [find_weights(layer) for layer in layers]
    assert kinds.count("FakeQuantize") >= 5
    assert sum(each.get_element_type().size == 1 for each in weights_) >= 0.9 * len(layers)
    if saturates():
        assert all(abs(each.data.astype(int)).max() <= 64 for each in weights_ if each.get_element_type().size == 1)

    # Maps of the body: a tenth of their spread, in the mean.
    maps, expected = ({}, {})
    for place, kept in ((str(tmp_path / "int8"), maps), (weights, expected)):
        predictor = Predictor(place, device="cpu")
        predictor.model.backbone.register_forward_hook(lambda _, __, found, kept=kept: kept.update(found))
        predictor.predict(str(data / "images" / "1.png"))
    for name in ("p2", "p3"):
        assert (maps[name] - expected[name]).abs().mean() < 0.1 * expected[name].std()


def test_a_broken_export_fails_with_a_table(trained, tool, tmp_path, capsys, monkeypatch):
    weights, data = trained
    written = HybridModel.write

    def write_broken(self, folder, *args):
        """With box heads that see nothing but background."""
        self._rest["roi_heads.box_predictor.cls_score.bias"][-1] += 100
        return written(self, folder, *args)

    monkeypatch.setattr(HybridModel, "write", write_broken)
    output = tmp_path / "out"
    assert tool.main(["--weights", weights, "--output", str(output), "--gate", str(data)]) == 1
    text, error = capsys.readouterr()
    assert "export: failed; what differs is in" in error
    assert "mask AP" in text
    assert text.count("lost") > 5
    assert not (output / "model.json").exists()
    report = json.loads((output / "export_report.json").read_text())
    assert report["passed"] is False
    assert report["comparison"]["drop"]["mask AP"] > 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_without_images_it_says_that_no_gate_was_run(trained, tmp_path, monkeypatch):
    weights, _ = trained
    with pytest.raises(
        UserError, match=r"int8 needs images to calibrate on, and the config.s images cannot be read .* --calibrate"
    ):
        run.export_model(weights, tmp_path / "a", precision="int8")
    data, why = run._gate_data(run.choose_config(None, weights), None)
    assert data is None
    assert why.startswith("none was run, since the config's images cannot be read")


def test_one_graph_passes_the_same_gate(trained, tmp_path):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install 'maskrcnn_plus[export]'")
    weights, data = trained
    result = run.export_model(weights, tmp_path / "onnx", to="onnx", gate=data, progress=lambda _: None)
    assert result.passed
    assert result.comparison.paired > 10
    assert result.comparison.lowest_iou > 0.98
    assert (tmp_path / "onnx" / "model.onnx").exists()
    with pytest.raises(UserError, match="int8 is for OpenVINO"):
        run.export_model(weights, tmp_path / "onnx", to="onnx", precision="int8")


def test_an_export_that_was_stopped_while_it_filled_its_folder_is_made_again(trained, tool, tmp_path, monkeypatch):
    moved = shutil.move

    def stop(source, target):
        moved(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(run.shutil, "move", stop)
    assert tool.main(["--weights", trained[0], "--output", str(tmp_path / "out")]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not is_model_folder(tmp_path / "out")
    run._check_output(tmp_path / "out")  # which it would refuse where something else is


def test_outputs_and_arguments_that_cannot_be(trained, tmp_path, tool, capsys):
    weights, data = trained
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text.doc").touch()
    for arguments, message in (
        (["--output", str(tmp_path / "thesis")], "holds something else than an exported model"),
        (["--output", str(tmp_path / "o"), "--max-drop", "-1"], "max_drop is -1"),
        (["--output", str(tmp_path / "o"), "--gate", str(tmp_path / "thesis")], "thesis"),
    ):
        assert tool.main(["--weights", weights, *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith("export: ")
        assert message in error
    with pytest.raises(UserError, match="is a file; --output is a folder"):
        run.export_model(weights, weights)
    assert tool.main(["--weights", str(data), "--output", str(tmp_path / "o")]) == 1
    assert "is a folder; --weights is the checkpoint" in capsys.readouterr().err


def test_one_graph_of_a_model_that_scales_by_diameter_needs_one(trained, tool, tmp_path, capsys):
    pytest.importorskip("onnx", reason="onnx is not installed: pip install 'maskrcnn_plus[export]'")
    cfg, (fixed, data), folder = tiny_config("mask_rcnn_lite0_fpn"), trained, str(tmp_path / "whole")
    cfg.dataloader.test.mapper.augmentations = [L(ScaleToDiameter)(diameter=24.0)]
    weights = save_checkpoint(tmp_path / "model.pth", cfg)
    arguments = ["--weights", weights, "--to", "onnx", "--gate", str(data), "--output", folder]
    for refused, reason in (
        (arguments, "--diameter PIXELS"),
        (["--weights", weights, "--diameter", "16", "--output", folder], "takes it when it predicts"),
        ([*arguments, "--diameter", "0"], "diameter"),
        (["--weights", fixed, *arguments[2:], "--diameter", "16"], "set dataset.scale"),
    ):
        assert tool.main(refused) == 1
        message = capsys.readouterr().err
        assert reason in message
        assert "Traceback" not in message

    assert tool.main([*arguments, "--diameter", "16"]) == 0
    image = str(data / "images" / "1.png")
    expected = Predictor(weights, diameter=16.0).predict(image)
    assert len(expected) > 5
    assert_same([ExportedModel(folder, threads=1).predict(image)], [expected])


def test_a_backbone_of_ones_own_becomes_part_of_one_graph(trained, tool, tmp_path, capsys):
    pytest.importorskip("onnx", reason="onnx is not installed: pip install 'maskrcnn_plus[export]'")
    (tmp_path / "own_config.py").write_text(OWN_BACKBONE)
    cfg = get_config(str(tmp_path / "own_config.py"))
    weights, folder = save_checkpoint(tmp_path / "model.pth", cfg), str(tmp_path / "whole")
    arguments = ["--weights", weights, "--gate", str(trained[1]), "--output", folder]
    arguments += ["--config-file", str(tmp_path / "own_config.py")]
    assert tool.main(arguments) == 1
    assert "OwnBackbone; one graph need not name them (--to onnx, or --whole)" in capsys.readouterr().err

    assert tool.main([*arguments, "--to", "onnx"]) == 0
    image = str(trained[1] / "images" / "1.png")
    expected = Predictor(cfg, weights).predict(image)
    assert len(expected) > 5
    assert_same([ExportedModel(folder, threads=1).predict(image)], [expected])


def test_hidden_files_are_no_images_to_calibrate_on(tmp_path):
    for name in ("b.png", "one/a.PNG", "._b.png", "__MACOSX/._b.png", ".thumbnails/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert folder_images(tmp_path) == [str(tmp_path / "b.png"), str(tmp_path / "one/a.PNG")]
