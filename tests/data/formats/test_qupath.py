"""QuPath's GeoJSON: as drawn by hand, and what this package writes itself."""

import io
import json

import numpy as np
import pytest
import torch
from annotation_folders import masks_of, read_one, rectangle, write_image
from detectron2.structures import Boxes, Instances

from maskrcnn_plus.data.formats import sniff
from maskrcnn_plus.masks.label_map import masks_to_rles
from maskrcnn_plus.masks.rle_masks import RLEMasks
from maskrcnn_plus.results.geojson import write_geojson


def ring(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def feature(coordinates=None, kind="Polygon", **properties):
    coordinates = [ring(6, 4, 30, 20)] if coordinates is None else coordinates
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}


def write(root, *features, bare=False, name="one.geojson"):
    write_image(root / "one.png")
    content = list(features) if bare else {"type": "FeatureCollection", "features": list(features)}
    (root / name).write_text(json.dumps(content))
    return root


CELL = {"classification": {"name": "NA", "color": [1, 2, 3]}}
SHAPES = [
    (feature(**CELL), rectangle(6, 4, 30, 20)),
    (feature([ring(6, 4, 30, 20), ring(10, 8, 20, 12)], **CELL), rectangle(6, 4, 30, 20) & ~rectangle(10, 8, 20, 12)),
    (
        feature([[ring(6, 4, 30, 20), ring(10, 8, 20, 12)], [ring(40, 4, 50, 20)]], "MultiPolygon", **CELL),
        rectangle(6, 4, 30, 20) & ~rectangle(10, 8, 20, 12) | rectangle(40, 4, 50, 20),
    ),
]


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(("entry", "mask"), SHAPES)
def test_shapes_are_the_pixels_drawn_by_hand(tmp_path, entry, mask, bare):
    record, data = read_one(write(tmp_path, entry, bare=bare))
    assert sniff(tmp_path) == ["qupath"]
    assert data.class_names == ["NA"]
    np.testing.assert_array_equal(masks_of(record)[0], mask)


@pytest.mark.parametrize("name", ["one.png.geojson", "one.json"])
def test_files_are_named_after_their_images(tmp_path, name):
    assert read_one(write(tmp_path, feature(), name=name))[0]["file_name"] == str(tmp_path / "one.png")


def test_results_of_this_package_are_read_back(tmp_path):
    masks = np.stack([mask for _, mask in SHAPES])
    instances = Instances((40, 60))
    instances.scores, instances.pred_classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0])
    instances.pred_boxes = Boxes(torch.zeros(3, 4))
    instances.pred_masks_rle = RLEMasks(masks_to_rles(masks), (40, 60))
    file = io.BytesIO()
    write_geojson(file, instances, ["cell", "dust"])
    write_image(tmp_path / "one.png")
    (tmp_path / "one.geojson").write_bytes(file.getvalue())
    record, data = read_one(tmp_path)
    np.testing.assert_array_equal(masks_of(record), masks)
    assert [data.class_names[each["category_id"]] for each in record["annotations"]] == ["cell", "dust", "cell"]


def test_no_features_are_a_negative_and_what_is_no_area_is_left_out(tmp_path):
    write_image(tmp_path / "two.png")
    record, data = read_one(write(tmp_path))
    assert record["annotations"] == []
    assert any("two.png" in note for note in data.notes)
    lines = feature([[1, 2], [3, 4]], "LineString"), feature([1, 2], "Point")
    record, data = read_one(write(tmp_path, feature(), *lines))
    assert data.class_names == ["object"]
    assert len(record["annotations"]) == 1
    for said in ("an open line", "a point", "which are of the class 'object' (1"):
        assert any(said in note for note in data.notes)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (feature(kind="Blob"), "not understood"),
        (feature([[["x", 1], [2, 3], [4, 5]]]), "its points are"),
        ({"type": "Feature", "properties": {}}, "no 'geometry'"),
        (feature([7]), ""),
        (7, ""),
    ],
)
def test_a_wrong_feature_is_named(tmp_path, entry, said):
    record, data = read_one(write(tmp_path, feature(), entry))
    assert len(record["annotations"]) == 1
    assert said in data.problems[0]
    assert "one.geojson, shape 1" in data.problems[0]


def test_classes_in_parts(tmp_path):
    """As QuPath from 0.4 on writes those that are derived, as Tumor: Positive."""
    parts = feature(classification={"names": ["Tumor", "Positive"], "color": [1, 2, 3]})
    _, data = read_one(write(tmp_path, parts, feature(classification={"name": "Tumor"})))
    assert data.class_names == ["Tumor: Positive", "Tumor"]
    assert not any("without classification" in note for note in data.notes)
