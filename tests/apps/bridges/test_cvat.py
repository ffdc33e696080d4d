"""CVAT's auto-annotation function: what the SDK takes, and the masks that it means."""

import logging

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from maskrcnn_plus.apps.bridges.cvat import MaskFunction, create
from maskrcnn_plus.data.pixels import prepare_image
from maskrcnn_plus.masks.label_map import label_map_to_rles
from maskrcnn_plus.masks.rle_masks import RLEMasks

cvat = pytest.importorskip("cvat_sdk.auto_annotation")
driver = pytest.importorskip("cvat_sdk.auto_annotation.driver")
masks = pytest.importorskip("cvat_sdk.masks")

LABELS = np.zeros((30, 40), dtype=np.int32)
LABELS[2:10, 3:12], LABELS[4:6, 5:8] = 1, 0  # with a hole
LABELS[20:25, 30:40], LABELS[12:15, 20:22] = 2, 2  # two parts, one at the border


def planted(labels=LABELS, count=2):
    """What gives known objects; keeps what it is asked for."""

    def detect(image, score_threshold=None):
        detect.asked = (image.shape, image.dtype, score_threshold)
        rles = label_map_to_rles(labels, np.arange(1, count + 1))
        return Instances(
            labels.shape,
            pred_boxes=Boxes(torch.zeros(count, 4)),
            scores=torch.linspace(0.75, 0.5, count),
            pred_classes=torch.arange(count) % 2,
            pred_masks_rle=RLEMasks(rles, labels.shape),
        )

    return detect


def context(polygons=False, threshold=None):
    return driver._DetectionFunctionContextImpl(
        frame_name="a.png", conf_threshold=threshold, conv_mask_to_poly=polygons
    )


def remapped(function, shapes, polygons=False):
    """The shapes as the SDK uploads them to a task that has the labels in another order."""
    facts = {"type": "polygon" if polygons else "mask", "attributes": [], "sublabels": []}
    task = [cvat.label_spec(name, 10 + index, **facts) for index, name in enumerate(["b", "a", "c"])]
    mapper = driver._AnnotationMapper(
        *(logging.getLogger(), function.spec.labels, task),
        allow_unmatched_labels=False,
        conv_mask_to_poly=polygons,
    )
    return mapper.validate_and_remap(shapes, 7)[1]


def test_masks_are_those_of_the_model():
    function = MaskFunction(planted(), ["a", "b"])
    shapes = function.detect(context(), Image.new("RGB", (40, 30)))
    for shape, label in zip(shapes, (1, 2), strict=True):
        assert shape.points == masks.encode_mask(label == LABELS)  # of the SDK
        *lengths, x0, y0, x1, y1 = map(int, shape.points)
        decoded = np.concatenate([np.full(n, k % 2, dtype=bool) for k, n in enumerate(lengths)])
        np.testing.assert_array_equal(
            decoded.reshape(y1 - y0 + 1, x1 - x0 + 1), (label == LABELS)[y0 : y1 + 1, x0 : x1 + 1]
        )
    assert [shape.score for shape in shapes] == [0.75, 0.5]
    uploaded = remapped(function, shapes)
    assert [(shape.type.value, shape.label_id, shape.frame) for shape in uploaded] == [("mask", 11, 7), ("mask", 10, 7)]


def test_polygons_where_cvat_asks_for_them():
    function = MaskFunction(planted(), ["a", "b"])
    shapes = function.detect(context(polygons=True), Image.new("RGB", (40, 30)))
    assert [shape.label_id for shape in shapes] == [0, 1, 1]
    assert len({shape.group for shape in shapes[1:]}) == 1
    corners = [sorted(zip(shape.points[::2], shape.points[1::2], strict=True)) for shape in shapes]
    assert corners[0] == [(3, 2), (3, 10), (12, 2), (12, 10)]
    assert sorted(corners[1:]) == [[(20, 12), (20, 15), (22, 12), (22, 15)], [(30, 20), (30, 25), (40, 20), (40, 25)]]
    assert len(remapped(function, shapes, polygons=True)) == 3


@pytest.mark.parametrize("polygons", [False, True])
def test_no_objects_and_empty_masks_give_no_shapes(polygons):
    for count in (0, 2):
        function = MaskFunction(planted(np.zeros((30, 40), dtype=np.int32), count), ["a", "b"])
        assert function.detect(context(polygons), Image.new("L", (40, 30))) == []


@pytest.mark.parametrize(
    ("mode", "shape", "dtype"),
    [
        ("L", (30, 40), np.uint8),
        ("RGBA", (30, 40, 4), np.uint8),
        ("I;16", (30, 40), np.uint16),
        ("I;16B", (30, 40), np.uint16),
        ("I", (30, 40), np.uint8),
        ("F", (30, 40), np.float32),
        ("P", (30, 40, 3), np.uint8),
        ("1", (30, 40, 3), np.uint8),
        ("CMYK", (30, 40, 3), np.uint8),
    ],
)
def test_images_of_all_modes_are_seen_with_their_threshold(mode, shape, dtype):
    detect = planted()
    MaskFunction(detect, ["a", "b"]).detect(context(threshold=0.25), Image.new(mode, (40, 30)))
    assert detect.asked == (shape, dtype, 0.25)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([[0, 255]], np.int32), np.uint8),
        (np.array([[0, 4000]], np.int32), np.uint16),
        (np.array([[0, 254.6]], np.float32), np.uint8),
        (np.array([[0, 0.5]], np.float32), np.float32),
    ],
)
def test_deep_images_keep_their_values_and_are_such_as_readers_take(values, dtype):
    seen = []
    detect = planted()
    MaskFunction(lambda image, threshold: seen.append(image) or detect(image, threshold), ["a", "b"]).detect(
        context(), Image.fromarray(values)
    )
    assert seen[0].dtype == dtype
    np.testing.assert_allclose(seen[0], values, atol=0.5 if dtype == np.uint8 else 0)
    prepare_image(seen[0], 3, None)  # refuses a range that it does not know


def test_weights_make_a_function(nuclei_zoo):
    function = create("maskrcnn_plus://nuclei", score_threshold=0.9, tile="64", device="cpu")
    assert [label.name for label in function.spec.labels] == function._detect.class_names
    pixels = np.random.default_rng(0).integers(0, 255, (80, 90), dtype=np.uint8)
    few, many = (function.detect(context(threshold=score), Image.fromarray(pixels)) for score in (0.9, 0.0))
    assert len(few) <= len(many)
    assert all(shape.score >= 0.9 for shape in few)
    with pytest.raises(ValueError, match="tile is 'large'"):
        create("maskrcnn_plus://nuclei", tile="large")
