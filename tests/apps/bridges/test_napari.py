"""napari's plugin: the manifest, labels of layers and planes, and the widget where napari is installed."""

import os
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.structures import Boxes

from maskrcnn_plus.apps.bridges import napari as bridge
from maskrcnn_plus.masks.label_map import label_map_to_rles
from maskrcnn_plus.masks.measure import rle_boxes
from maskrcnn_plus.masks.rle_masks import RLEMasks
from maskrcnn_plus.results.predictions import Predictions

ROOT = Path(__file__).resolve().parents[3]


def detect_values(image, score=0.0):
    """An object for each grey value above 0 of the first channel, with the score value / 255."""
    values = image if image.ndim == 2 else image[..., 0]
    ids = [int(value) for value in np.unique(values)[::-1] if value > 0 and value / 255 >= score]
    rles = label_map_to_rles(values.astype(np.int32), ids)
    return Predictions(
        values.shape,
        class_names=["cell"],
        image=image,
        pred_boxes=Boxes(torch.from_numpy(rle_boxes(rles))),
        scores=torch.tensor(ids, dtype=torch.float32) / 255,
        pred_classes=torch.zeros(len(ids), dtype=torch.int64),
        pred_masks_rle=RLEMasks(rles, values.shape),
    )


def planes():
    stack = np.zeros((2, 3, 20, 30), dtype=np.uint8)
    stack[0, 0, 2:5, 3:9], stack[0, 0, 10:15, 3:9] = 200, 100
    stack[1, 2, 4:8, 10:20] = 50
    return stack


def test_labels_of_a_stack_are_unique_and_so_are_the_rows_of_its_table():
    pytest.importorskip("pandas")
    labels, table = bridge.label_image(planes(), detect_values)
    expected = np.zeros(planes().shape, dtype=np.int32)
    expected[0, 0, 2:5, 3:9], expected[0, 0, 10:15, 3:9], expected[1, 2, 4:8, 10:20] = 1, 2, 3
    np.testing.assert_array_equal(labels, expected)
    assert table["index"].tolist() == [1, 2, 3]
    assert table["area_px"].tolist() == [18, 30, 40]
    assert table["mean_intensity"].tolist() == [200, 100, 50]
    assert table[["axis 0", "axis 1"]].values.tolist() == [[0, 0], [0, 0], [1, 2]]
    assert table["class"].tolist() == ["cell"] * 3


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_is_one_plane(channels):
    pytest.importorskip("pandas")
    image = np.zeros((20, 30, channels), dtype=np.uint8)
    image[2:5, 3:9] = 200
    labels, table = bridge.label_image(image, detect_values, rgb=True)
    assert labels.shape == (20, 30)
    assert labels[2:5, 3:9].all()
    assert (len(table), int((labels > 0).sum())) == (1, 18)
    labels, table = bridge.label_image(np.zeros((20, 30), np.uint8), detect_values)
    assert not labels.any()
    assert len(table) == 0


def test_the_manifest_goes_with_the_wheel_and_names_what_is_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, _, file = project["project"]["entry-points"]["napari.manifest"]["maskrcnn_plus"].partition(":")
    assert project["tool"]["setuptools"]["package-data"][module] == [file]
    manifest = yaml.safe_load((ROOT / module.replace(".", "/") / file).read_text())
    commands = {each["id"]: each["python_name"] for each in manifest["contributions"]["commands"]}
    (widget,) = manifest["contributions"]["widgets"]
    name, _, function = commands[widget["command"]].partition(":")
    assert name == bridge.__name__
    assert callable(getattr(bridge, function))
    npe2 = pytest.importorskip("npe2")
    assert npe2.PluginManifest.from_file(ROOT / module.replace(".", "/") / file).name == "maskrcnn_plus"


def test_the_widget_adds_labels_with_their_table(monkeypatch):
    """Without a window, which would need OpenGL."""
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    napari = pytest.importorskip("napari")
    from napari._qt.qt_main_window import _instantiate_dock_widget  # what the menu does
    from napari.components import ViewerModel
    from qtpy.QtWidgets import QApplication

    monkeypatch.setattr(bridge, "load", lambda weights, diameter: detect_values)
    app, viewer = QApplication.instance() or QApplication([]), ViewerModel()
    monkeypatch.setattr(napari, "current_viewer", lambda: viewer)
    widget = _instantiate_dock_widget(bridge.make_widget, viewer)
    assert widget[0].choices == ()
    viewer.add_labels(np.zeros((4, 4), dtype=int))
    layer = viewer.add_image(planes(), name="slide", scale=(2, 1, 0.5, 0.25), translate=(0, 0, 3, 4))
    assert widget[0].choices == (layer,)
    widget[2].value = 0.3  # least score
    widget[-1].changed.emit(True)
    for _ in range(500):
        app.processEvents()
        if len(viewer.layers) == 3 and widget[-1].enabled:
            break
        app.thread().msleep(10)
    labels = viewer.layers["slide: objects"]
    assert isinstance(labels, napari.layers.Labels)
    np.testing.assert_array_equal(np.unique(labels.data), [0, 1, 2])  # the third has a score of 0.2
    np.testing.assert_array_equal(labels.scale, layer.scale)
    np.testing.assert_array_equal(labels.translate, layer.translate)
    assert labels.features["index"].tolist() == [1, 2]
    assert labels.features["area_px"].tolist() == [18, 30]


def test_weights_predict_a_layer(nuclei_zoo):
    pytest.importorskip("pandas")
    bridge._load.cache_clear()
    detector = bridge.load("maskrcnn_plus://nuclei", None)
    assert bridge.load("maskrcnn_plus://nuclei", None) is detector
    pixels = np.random.default_rng(0).integers(0, 4000, (2, 64, 64), dtype=np.uint16)
    labels, table = bridge.label_image(pixels, lambda plane: detector(plane, 0.0))
    assert labels.shape == pixels.shape
    assert set(np.unique(labels).tolist()) - {0} <= set(table["index"])
    bridge._load.cache_clear()


def test_weights_are_read_again_where_their_file_has_changed(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(bridge, "Detector", lambda weights, diameter: made.append(weights) or len(made))
    exported, checkpoint = tmp_path / "exported", tmp_path / "model_best.pth"
    exported.mkdir()
    for path, weights in ((exported / "model.json", exported), (checkpoint, checkpoint)):
        path.write_text("first")
        first = bridge.load(str(weights), None)
        assert bridge.load(str(weights), None) == first
        os.utime(path, (1, 1))  # another training
        assert bridge.load(str(weights), None) == first + 1
    bridge._load.cache_clear()
