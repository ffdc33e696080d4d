"""The description of an exported model: what is written is read back, and nothing else is read."""

import dataclasses
import json

import detectron2.data.transforms as T
import numpy as np
import pytest

from maskrcnn_plus.data import InterpolateShortestEdge, MMCVResize
from maskrcnn_plus.data.augmentation import ScaleImage
from maskrcnn_plus.model_folder import (
    ModelDescription,
    ModelFolderError,
    Postprocessing,
    Preprocessing,
    Resize,
    is_model_folder,
    read_model_folder,
    write_model_folder,
)

RULES = {
    "scale": (Resize("scale", 1.5, max_size=300), ScaleImage(1.5, 300)),
    "scale of a short side": (Resize("scale", 0.7, 96, 4096), ScaleImage(0.7, short_side=96)),
    "detectron2": (Resize("detectron2", short_side=80, max_size=133), T.ResizeShortestEdge(80, 133, "choice")),
    "torchvision": (Resize("torchvision", short_side=80, max_size=133), InterpolateShortestEdge(80, 133)),
    "mmcv": (Resize("mmcv", short_side=80, max_size=133), MMCVResize(80, 133)),
}


def describe(**changes):
    description = ModelDescription(
        kind="whole",
        precision="fp32",
        class_names=("nucleus", "größer"),
        category_ids=(1, "b"),
        preprocessing=Preprocessing(
            channels=2,
            color_order="RGB",
            resize=Resize("scale", 1.5, None, 4096),
            pixel_mean=(1.0, 2.5),
            pixel_std=(3.0, 4.0),
            pad_to_multiple=32,
            select=(0, "DAPI"),
            percentiles=(1.0, 99.8),
        ),
        postprocessing=Postprocessing(max_objects=500, score_threshold=0.5, min_mask_area=20, max_covered=0.5),
        packages={"torch": "2"},
        details={"a": [1, {"b": None}]},
    )
    return dataclasses.replace(description, **changes)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"graph" * 100)
    write_model_folder(tmp_path, describe(), ["model.onnx"])
    return tmp_path


def change(folder, **values):
    path = folder / "model.json"
    content = json.loads(path.read_text())
    for key, value in values.items():
        *parts, last = key.split("__")
        place = content
        for part in parts:
            place = place[part]
        place[last] = value
        if value is ...:
            del place[last]
    path.write_text(json.dumps(content))


def test_what_is_written_is_read_back(folder):
    read = read_model_folder(folder, "whole")
    assert dataclasses.replace(read, files={}) == describe()
    assert read.files["model.onnx"].bytes == 500
    assert is_model_folder(folder)
    assert not is_model_folder(folder / "model.onnx")


@pytest.mark.parametrize("rule", RULES)
def test_sizes_are_those_of_the_augmentations(rule):
    resize, augmentation = RULES[rule]
    rng = np.random.default_rng(0)
    for height, width in [(1, 1), (80, 80), (427, 640), *rng.integers(1, 400, (300, 2)).tolist()]:
        image = np.zeros((height, width, 1), dtype=np.uint8)
        transform = augmentation.get_transform(image)
        if rule.startswith("scale"):
            expected = transform.output
        else:
            expected = transform.new_size if rule == "torchvision" else (transform.new_h, transform.new_w)
        assert resize.output_size(height, width) == tuple(expected), (height, width)


def test_no_resizing_keeps_the_size():
    assert Resize("none").output_size(37, 41) == (37, 41)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"version": 2}, "version 2"),
        ({"format": "onnx"}, "does not describe"),
        ({"kind": "other"}, "kind cannot be 'other'"),
        ({"class_names": []}, "class_names are missing"),
        ({"class_names": ["a"]}, "category_ids"),
        ({"class_names": [1, 2]}, r"class_names\[0\]"),
        ({"classes": 3}, "classes is not known"),
        ({"preprocessing": None}, "preprocessing is no mapping"),
        ({"preprocessing__pixel_mean": ...}, "preprocessing.pixel_mean is missing"),
        ({"preprocessing__pixel_mean": [1.0]}, "pixel_mean"),
        ({"preprocessing__pixel_std": [0.0, 1.0]}, "pixel_std"),
        ({"preprocessing__channels": True}, "preprocessing.channels"),
        ({"preprocessing__percentiles": [99.0, 1.0]}, "percentiles"),
        ({"preprocessing__percentiles": [1.0]}, "percentiles"),
        ({"preprocessing__resize__rule": "mmcv"}, "short_side is missing"),
        ({"preprocessing__resize__scale": float("nan")}, "resize.scale"),
        ({"preprocessing__resize__scale": 10**400}, "resize.scale"),
        ({"preprocessing__resize__short_side": 10**400}, "resize"),
        ({"preprocessing__resize__scale": 0}, "resize"),
        ({"postprocessing__max_objects": 0}, "postprocessing"),
        ({"postprocessing__score_threshold": 2.0}, "threshold"),
        ({"files": {}}, "files are missing"),
        ({"files": {"../model.onnx": {"sha256": "", "bytes": 1}}}, "a name in files is a path"),
        ({"files": {"model.onnx": {"sha256": "", "bytes": 500}}}, "model.onnx is not the file that was exported"),
        ({"files": {"model.xml": {"sha256": "", "bytes": 500}}}, "model.xml is missing"),
    ],
)
def test_a_wrong_description_is_refused_by_name(folder, values, message):
    change(folder, **values)
    with pytest.raises(ModelFolderError, match=message):
        read_model_folder(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b" " * 5_000_000])
def test_a_damaged_description_is_refused(folder, content):
    (folder / "model.json").write_bytes(content)
    with pytest.raises(ModelFolderError, match=r"model\.json"):
        read_model_folder(folder)


def test_other_folders_are_refused(tmp_path, folder):
    with pytest.raises(ModelFolderError, match="is no folder"):
        read_model_folder(tmp_path / "missing")
    with pytest.raises(ModelFolderError, match="a hybrid one is needed"):
        read_model_folder(folder, "hybrid")
    (folder / "model.json").unlink()
    with pytest.raises(ModelFolderError, match=r"has no model\.json"):
        read_model_folder(folder)


def test_a_changed_graph_is_refused(folder):
    (folder / "model.onnx").write_bytes(b"Graph" * 100)
    with pytest.raises(ModelFolderError, match=r"damaged, or of another export"):
        read_model_folder(folder)
