"""Ground-truth RLEs from label images, polygons and RLEs; every error names image and annotation."""

from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as coco_mask
import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode
from detectron2.structures.masks import polygons_to_bitmask

from maskrcnn_plus.evaluation.ground_truth import ground_truth_rles, load_ground_truth

HEIGHT, WIDTH = 20, 30


def entry(*annotations, **fields):
    return {
        "file_name": "cells.png",
        "image_id": 7,
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": list(annotations),
        **fields,
    }


@pytest.fixture
def label_file(tmp_path):
    label_map = np.zeros((HEIGHT, WIDTH), dtype=np.uint16)
    label_map[2:8, 3:9] = 1
    label_map[10:15, 20:30] = 40000
    path = tmp_path / "labels.png"
    cv2.imwrite(str(path), label_map)
    return str(path), label_map


def test_label_image_polygon_and_rle_in_the_annotations_order(label_file):
    path, label_map = label_file
    polygon = [4.5, 3.0, 12.0, 3.5, 9.0, 15.0]
    runs = [50, 25, HEIGHT * WIDTH - 75]
    compressed = coco_mask.frPyObjects({"size": [HEIGHT, WIDTH], "counts": runs}, HEIGHT, WIDTH)
    rles = ground_truth_rles(
        entry(
            {"segmentation": [polygon, np.array([15.0, 2, 20, 2, 20, 8, 15, 8])]},
            {"label_id": 40000},
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": runs}, "iscrowd": 1},
            {"label_id": 1},
            {"segmentation": compressed},
            label_file_name=path,
        )
    )
    run_mask = np.zeros(HEIGHT * WIDTH, dtype=bool)
    run_mask[50:75] = True
    run_mask = run_mask.reshape(WIDTH, HEIGHT).T
    polygons = [np.array(polygon), np.array([15.0, 2, 20, 2, 20, 8, 15, 8])]
    expected = [polygons_to_bitmask(polygons, HEIGHT, WIDTH), label_map == 40000, run_mask, label_map == 1, run_mask]
    assert len(rles) == 5
    for rle, mask in zip(rles, expected, strict=True):
        assert isinstance(rle["counts"], str)
        assert np.array_equal(coco_mask.decode(rle), mask)


def test_an_image_without_annotations():
    assert ground_truth_rles(entry()) == []
    assert ground_truth_rles({"file_name": "a.png", "height": 3, "width": 4}) == []


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        ({}, "no mask"),
        ({"segmentation": []}, "no mask"),
        ({"segmentation": [[1, 1, 2, 2]]}, "4 numbers"),
        ({"segmentation": [[1, 1, 2, 2, 3, 3, 4]]}, "7 numbers"),
        ({"segmentation": [[1, 1, 2, 2, float("nan"), 3]]}, "finite"),
        ({"segmentation": [[1, 1, 2, 2, 1e12, 3]]}, "far outside"),
        ({"segmentation": [["a", 1, 2, 2, 3, 3]]}, "list of numbers"),
        ({"segmentation": {"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}}, r"size \[30, 20\]"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [5, 5]}}, "corrupt"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": b"\xff"}}, "RLE"),
    ],
)
def test_a_malformed_segmentation_names_image_and_annotation(annotation, text):
    good = {"segmentation": [[1, 1, 5, 1, 5, 5]]}
    with pytest.raises(ValueError, match=rf"cells\.png.*annotation 1: .*{text}"):
        ground_truth_rles(entry(good, annotation))


@pytest.mark.parametrize("label_id", [2, 0, -1, 70000])
def test_a_label_id_that_is_no_object(label_file, label_id):
    with pytest.raises(ValueError, match=rf"cells\.png.*annotation 1: label_id {label_id} .*labels\.png"):
        ground_truth_rles(entry({"label_id": 1}, {"label_id": label_id}, label_file_name=label_file[0]))


def test_label_image_missing_or_of_another_size(label_file, tmp_path):
    with pytest.raises(ValueError, match="label_file_name"):
        ground_truth_rles(entry({"label_id": 1}))
    with pytest.raises(ValueError, match=r"absent\.png"):
        ground_truth_rles(entry({"label_id": 1}, label_file_name=str(tmp_path / "absent.png")))
    with pytest.raises(ValueError, match=r"labels\.png has 20 x 30 .*has 20 x 31"):
        ground_truth_rles(entry({"label_id": 1}, label_file_name=label_file[0], width=31))


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([], "no images"),
        ([entry(), entry(file_name="other.png")], r"cells\.png.*other\.png"),
        ([{"file_name": "x.png", "image_id": 1, "height": 3}], r"x\.png.*'width'"),
    ],
)
def test_load_ground_truth_refuses(request, entries, text):
    name = f"ground_truth_{request.node.name}"
    DatasetCatalog.register(name, lambda: entries)
    try:
        with pytest.raises(ValueError, match=text):
            load_ground_truth(name)
    finally:
        DatasetCatalog.remove(name)


def test_real_coco_annotations_equal_detectron2_masks():
    folder = Path(__file__).resolve().parents[3] / "shared/data/coco_tiny"
    if not folder.is_dir():
        pytest.skip(f"no COCO data at {folder}")
    compared = 0
    for dataset_dict in load_coco_json(str(folder / "instances.json"), str(folder / "images"))[:12]:
        for rle, annotation in zip(ground_truth_rles(dataset_dict), dataset_dict["annotations"], strict=True):
            segmentation = annotation["segmentation"]
            if isinstance(segmentation, dict):
                expected = coco_mask.decode(segmentation)
            else:
                polygons = [np.asarray(polygon) for polygon in segmentation]
                expected = polygons_to_bitmask(polygons, dataset_dict["height"], dataset_dict["width"])
            assert annotation["bbox_mode"] == BoxMode.XYWH_ABS
            assert np.array_equal(coco_mask.decode(rle), expected)
            compared += 1
    assert compared > 20
