"""Label Studio's backend: predictions as its documentation has them, whose masks our reader finds again."""

import json
import logging
import re

import cv2
import numpy as np
import pytest
import torch
from annotation_folders import masks_of
from detectron2.structures import Boxes, Instances

from maskrcnn_plus.apps.bridges import label_studio
from maskrcnn_plus.apps.bridges.label_studio import find_control, make_backend, make_prediction
from maskrcnn_plus.data.formats import read
from maskrcnn_plus.data.formats.brush import decode_brush, encode_brush
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.masks.label_map import label_map_to_rles
from maskrcnn_plus.masks.rle_masks import RLEMasks

LABELS = np.zeros((30, 40), dtype=np.int32)
LABELS[2:10, 3:12], LABELS[4:6, 5:8] = 1, 0  # with a hole
LABELS[20:25, 30:40], LABELS[12:15, 20:22] = 2, 2  # two parts
LABELS[28:, :5] = 3


def control_of(kind, labels=("Nucleus", "Mitosis"), **further):
    """As label-studio's `parse_config` gives it."""
    inputs = [{"type": "Image", "value": "image", "valueType": None}]
    return {"tag": {"type": kind, "to_name": ["img"], "inputs": inputs, "labels": list(labels), **further}}


def instances():
    return Instances(
        LABELS.shape,
        pred_boxes=Boxes(torch.zeros(3, 4)),
        scores=torch.tensor([0.75, 0.5, 0.25]),
        pred_classes=torch.tensor([0, 1, 2]),
        pred_masks_rle=RLEMasks(label_map_to_rles(LABELS, [1, 2, 3]), LABELS.shape),
    )


def predict(kind):
    names = ["nucleus", "mitosis", "debris"]
    return make_prediction(instances(), names, find_control(control_of(kind), names))


@pytest.mark.parametrize("kind", ["BrushLabels", "PolygonLabels"])
def test_our_reader_finds_the_masks_of_a_prediction(tmp_path, kind):
    prediction = predict(kind)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros(LABELS.shape, np.uint8))
    task = {"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": prediction["result"]}]}
    (tmp_path / "tasks.json").write_text(json.dumps([task]))
    data = read(tmp_path)
    assert (data.format, data.problems, data.class_names) == ("label_studio", [], ["Nucleus", "Mitosis"])
    ((record,),) = data.splits.values()
    expected = [LABELS == 1, LABELS == 2]
    if kind == "PolygonLabels":  # which have neither holes nor parts
        expected[0][4:6, 5:8], expected[1][12:15] = True, False
    for found, mask in zip(masks_of(record), expected, strict=True):
        np.testing.assert_array_equal(found, mask)


@pytest.mark.parametrize("kind", ["BrushLabels", "PolygonLabels"])
def test_a_prediction_has_what_label_studio_documents(kind):
    prediction = json.loads(json.dumps(predict(kind)))
    assert prediction["score"] == pytest.approx((0.75 + 0.5) / 2)
    for result, label, score in zip(prediction["result"], ["Nucleus", "Mitosis"], [0.75, 0.5], strict=True):
        value = result.pop("value")
        assert value.pop(kind.lower()) == [label]
        assert set(value) == ({"format", "rle"} if kind == "BrushLabels" else {"points", "closed"})
        assert re.fullmatch(r"object\d", result.pop("id"))
        assert result == {
            "from_name": "tag",
            "to_name": "img",
            "type": kind.lower(),
            "score": score,
            "original_width": 40,
            "original_height": 30,
            "image_rotation": 0,
        }


def test_nothing_found_is_a_prediction_too():
    names = ["nucleus"]
    empty = make_prediction(instances()[:0], names, find_control(control_of("BrushLabels"), names))
    assert empty == {"result": [], "score": 0.0}
    blank = instances()[:1]
    blank.pred_masks_rle = RLEMasks.from_dense(torch.zeros(1, *LABELS.shape, dtype=torch.bool))
    for kind in ("BrushLabels", "PolygonLabels"):
        assert make_prediction(blank, names, find_control(control_of(kind), names)) == {"result": [], "score": 0.0}


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (300, 410)])
def test_the_brush_is_read_as_it_is_written(shape):
    rng = np.random.default_rng(0)
    for mask in (rng.random(shape) < 0.5, np.zeros(shape, bool), np.ones(shape, bool)):
        np.testing.assert_array_equal(decode_brush(encode_brush(mask), *shape), mask)


def test_labels_are_matched_with_classes(caplog):
    attributes = {"Cell": {"predicted_values": "nucleus, mitosis"}, "Other": {}}
    named = control_of("PolygonLabels", ["Cell", "Other"], labels_attrs=attributes)
    assert find_control(named, ["nucleus", "mitosis", "x"]).labels == {"nucleus": "Cell", "mitosis": "Cell"}
    single = control_of("PolygonLabels", ["Cell"])
    with caplog.at_level(logging.WARNING):
        assert find_control(single, ["nucleus"]).labels == {"nucleus": "Cell"}
    assert "the only class 'nucleus' of the model is taken for the only label 'Cell'" in caplog.text
    both = {**control_of("PolygonLabels"), "brush": control_of("BrushLabels")["tag"]}
    assert find_control(both, ["nucleus"]).name == "brush"
    with pytest.raises(UserError, match=r"none of the labels Cell is a class of the model \(a, b\)"):
        find_control(single, ["a", "b"])
    with pytest.raises(UserError, match="has no BrushLabels or PolygonLabels of an image"):
        find_control(control_of("RectangleLabels"), ["a"])


class Base:
    """The part of `LabelStudioMLBase` that a backend uses."""

    parsed_label_config = control_of("BrushLabels")

    def get_local_path(self, url):
        return url


class BaseOfVersion2(Base):
    def get_local_path(self, url, task_id=None):
        assert task_id == 5
        return url


def planted(path):
    if path == "gone.png":
        raise FileNotFoundError("gone.png: there is no such file")
    return instances()


planted.class_names = ["nucleus", "mitosis", "debris"]


@pytest.mark.parametrize("base", [Base, BaseOfVersion2])
def test_a_backend_predicts_each_task(monkeypatch, caplog, base):
    import sys
    import types

    module = types.ModuleType("label_studio_ml.model")
    module.LabelStudioMLBase = base
    monkeypatch.setitem(sys.modules, "label_studio_ml", types.ModuleType("label_studio_ml"))
    monkeypatch.setitem(sys.modules, "label_studio_ml.model", module)
    backend = make_backend(planted)()
    tasks = [{"id": 5, "data": {"image": name}} for name in ("a.png", "gone.png")]
    first, second = backend.predict(tasks, context=None)
    assert first == predict("BrushLabels")
    assert second == {"result": [], "score": 0.0}
    assert "task 5 cannot be predicted: gone.png: there is no such file" in caplog.text


def test_the_real_package_takes_it():
    pytest.importorskip("label_studio_ml")
    config = (
        '<View><Image name="img" value="$image"/><BrushLabels name="tag" toName="img">'
        '<Label value="Nucleus"/><Label value="Mitosis"/></BrushLabels></View>'
    )
    backend = make_backend(planted)(label_config=config)
    backend.get_local_path = lambda url, **options: url
    assert backend.predict([{"id": 5, "data": {"image": "a.png"}}]) == [predict("BrushLabels")]


def test_without_the_package_it_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "label_studio_ml", None)
    monkeypatch.setitem(sys.modules, "label_studio_ml.model", None)
    with pytest.raises(UserError, match="pip install label-studio-ml"):
        label_studio.make_backend(planted)
