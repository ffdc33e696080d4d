"""The figures of a data set: against masks that are drawn and counted by pycocotools and NumPy."""

import math
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from annotation_folders import HEIGHT, WIDTH, masks_of, rectangle
from detectron2.structures import BoxMode
from PIL import Image

from maskrcnn_plus.data import statistics
from maskrcnn_plus.data.formats.label_maps import LabelMapFolder, label_map_annotations
from maskrcnn_plus.data.formats.masks import mask_annotation, polygon_annotation
from maskrcnn_plus.data.statistics import measure, sample_pixels
from maskrcnn_plus.masks.measure import rle_boxes

NUCLEI = Path(__file__).resolve().parents[3] / "shared" / "data" / "nuclei_fluo"
TRIANGLE = [[5.0, 5, 25, 7.5, 8, 30]]


def make_record(tmp_path, name, pixels, annotations):
    Image.fromarray(pixels).save(tmp_path / name)
    size = {"height": pixels.shape[0], "width": pixels.shape[1]}
    return {"file_name": str(tmp_path / name), "image_id": name, **size, "annotations": annotations}


@pytest.fixture
def records(tmp_path):
    """Two classes, polygons and RLEs, a crowd, an image without objects."""
    grey = np.full((HEIGHT, WIDTH), 90, dtype=np.uint8)
    crowd = {**mask_annotation(rectangle(0, 0, 60, 5), 0), "iscrowd": 1}
    mixed = [
        polygon_annotation(TRIANGLE, 0),
        mask_annotation(rectangle(6, 6, 26, 31) | rectangle(50, 2, 55, 8), 0),
        mask_annotation(rectangle(6, 6, 26, 31), 1),
        crowd,
    ]
    return [
        make_record(tmp_path, "mixed.png", grey, mixed),
        make_record(tmp_path, "empty.png", grey, []),
        make_record(tmp_path, "crowd.png", grey, [crowd]),
        make_record(tmp_path, "one.png", grey, [polygon_annotation([[1.0, 1, 9, 1, 9, 5, 1, 5]], 1)]),
    ]


def brute_iou(a, b):
    sides = [min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def tight_box(mask):
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_figures_are_those_of_the_drawn_masks(records):
    found = measure(records, ["cell", "dust", "nothing"])
    masks = [mask for record in records for mask in masks_of(record)]
    masks = [masks[k] for k in (0, 1, 2, 5)]  # without crowds
    boxes = np.array([tight_box(mask) for mask in masks])
    assert (found.num_images, found.num_objects, found.num_negatives, found.num_crowds) == (4, 4, 2, 2)
    assert found.class_counts == {"cell": 2, "dust": 2, "nothing": 0}
    assert found.images_per_class == {"cell": 1, "dust": 2, "nothing": 0}
    assert found.objects_per_image.tolist() == [3, 0, 0, 1]
    assert found.image_index.tolist() == [0, 0, 0, 3]
    assert found.classes.tolist() == [0, 0, 1, 1]
    assert found.image_sizes.tolist() == [[HEIGHT, WIDTH]] * 4
    np.testing.assert_array_equal(found.areas, [mask.sum() for mask in masks])
    np.testing.assert_array_equal(found.box_sizes, boxes[:, 2:] - boxes[:, :2])
    np.testing.assert_allclose(found.diameters, 2 * np.sqrt(np.divide([mask.sum() for mask in masks], np.pi)))
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    np.testing.assert_allclose(found.fill, [mask.sum() / area for mask, area in zip(masks, areas, strict=True)])
    overlap = brute_iou(boxes[0], boxes[1])
    np.testing.assert_allclose(found.box_overlap, [overlap, overlap, 0, 0])
    shared = (masks[0] & masks[1]).sum()
    np.testing.assert_allclose(found.covered, [shared / masks[0].sum(), shared / masks[1].sum(), 0, 0])
    assert found.pixels is None


@pytest.mark.parametrize("with_areas", [True, False])
def test_label_images(tmp_path, with_areas):
    labels = np.zeros((300, 320), dtype=np.uint16)
    rng = np.random.default_rng(0)
    for k in range(1, 400):
        y, x = rng.integers(0, 290), rng.integers(0, 300)
        labels[y : y + rng.integers(2, 12), x : x + rng.integers(2, 20)] = k
    annotations = label_map_annotations(labels)
    if not with_areas:
        annotations = [{key: each[key] for key in each if key != "area"} for each in annotations]
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record = make_record(tmp_path, "image.png", (labels > 0).astype(np.uint8) * 200, annotations)
    record["label_file_name"] = str(tmp_path / "labels.png")
    found = measure([record], ["object"])
    ids = [each["label_id"] for each in annotations]
    np.testing.assert_array_equal(found.areas, [(labels == k).sum() for k in ids])
    boxes = [each["bbox"] for each in annotations]
    xywh = np.array([BoxMode.convert(box, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS) for box in boxes])
    ious = coco_mask.iou(xywh, xywh, [0] * len(xywh))
    np.fill_diagonal(ious, 0)
    np.testing.assert_allclose(found.box_overlap, ious.max(1))
    assert not found.covered.any()
    assert sample_pixels([record]).dark_background == 1


def test_shares_that_several_cover_are_added_up(monkeypatch):
    masks = np.random.default_rng(0).random((40, 12, 15)) < 0.1
    masks[7] = False
    classes = np.arange(40) % 3
    monkeypatch.setattr(statistics, "_ROWS", 5)
    rles = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks.view(np.uint8)]
    found = statistics.covered_shares(rles, rle_boxes(rles), classes)
    for k, mask in enumerate(masks):
        others = [masks[j] for j in range(40) if j != k and classes[j] == classes[k]]
        assert found[k] == pytest.approx(sum((mask & other).sum() for other in others) / max(mask.sum(), 1))


def test_nothing_is_measured_too():
    found = measure([], ["cell"])
    assert (found.num_images, found.num_objects, found.class_counts) == (0, 0, {"cell": 0})
    assert found.box_sizes.shape == (0, 2)
    assert found.fill.shape == found.diameters.shape == found.box_overlap.shape == found.covered.shape == (0,)
    pixels = sample_pixels([])
    assert pixels.num_images == 0
    assert math.isnan(pixels.dark_background)
    assert pixels.intensity.shape == (0, 2)


def test_pixels_of_every_depth(tmp_path):
    inside = rectangle(10, 10, 30, 30)
    ramp = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH)
    deep = np.where(inside, 5, 1000 + ramp).astype(np.uint16)  # dark objects
    red = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    red[..., 0] = np.where(inside, 255, 51)
    transparent = np.dstack([red, np.full((HEIGHT, WIDTH), 7, dtype=np.uint8)])
    objects = [mask_annotation(inside, 0)]
    named = {"deep.png": deep, "red.png": red, "alpha.png": transparent, "real.tif": ramp.astype(np.float32) / 2400}
    records = [make_record(tmp_path, name, pixels, objects) for name, pixels in named.items()]
    (tmp_path / "broken.png").write_bytes((tmp_path / "red.png").read_bytes()[:60])
    records += [{**records[0], "file_name": str(tmp_path / name)} for name in ("broken.png", "missing.png")]
    found = sample_pixels(records)
    assert found.num_images == 4
    assert found.channels == {1: 2, 3: 2}
    assert found.dtypes == {"uint16": 1, "uint8": 2, "float32": 1}
    assert len(found.unreadable) == 2
    assert all(name in " ".join(found.unreadable) for name in ("broken.png", "missing.png"))
    np.testing.assert_allclose(found.intensity[0], np.percentile(deep, (1, 99.8)))
    assert found.dark_background == 0.5
    saturation = red.max(2).mean() / 255
    np.testing.assert_allclose(found.mean_saturation, 2 * saturation / 4)


def test_a_sample_is_drawn_by_its_seed(tmp_path):
    records = [make_record(tmp_path, f"{k}.png", np.full((8, 8), k, dtype=np.uint8), []) for k in range(30)]
    drawn = [sample_pixels(records, limit=5, seed=seed).intensity[:, 0].tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 5


@pytest.mark.skipif(not NUCLEI.is_dir(), reason=f"{NUCLEI} is not there")
def test_fluorescence_is_seen_as_such():
    records = LabelMapFolder(str(NUCLEI), "val", "images", "labels", "raise")()
    pixels = sample_pixels(records)
    found = measure(records, ["nucleus"], pixels)
    assert found.num_images == pixels.num_images == 50
    assert found.num_objects == sum(len(record["annotations"]) for record in records)
    assert pixels.dtypes == {"uint8": 50}
    assert pixels.dark_background > 0.9
    assert pixels.mean_saturation == 0
