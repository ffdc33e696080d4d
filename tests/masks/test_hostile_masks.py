"""Nothing reaches pycocotools, which trusts its input with memory, that was not checked and written anew here."""

import cv2
import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.structures import BoxMode, PolygonMasks

from maskrcnn_plus.data.augmentation import CropResizeTransform
from maskrcnn_plus.data.check import DataError, check_dataset
from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.evaluation.coco_api import precision_and_recall
from maskrcnn_plus.evaluation.ground_truth import ground_truth_rles
from maskrcnn_plus.evaluation.matching import count_matches, visible_masks
from maskrcnn_plus.mask_heads.targets import areas_in_boxes
from maskrcnn_plus.masks.measure import rle_areas, rle_ious, rle_overlaps, rle_union, suppress_covered
from maskrcnn_plus.masks.polygons import clip_polygon, polygons_to_bitmasks, polygons_to_mask, polygons_to_rle
from maskrcnn_plus.masks.rle_masks import RLEMasks
from maskrcnn_plus.rle import canonical_rles

H, W = 6, 7
GOOD = {"size": [H, W], "counts": [10, 5, 27]}

CORRUPT = {
    "ends within a number": "0P",
    "unknown characters": "\x7f\x7f",
    "too short": "55",
    "too long": canonical_rles([{"size": [60, 70], "counts": [600, 3600]}])[0]["counts"],
    "negative run": "5N",
    "sum right, runs negative": [50, -10, 2],
    "sum right by overflow": [2**62, 2**62, 2**62, 2**62, H * W],
    "fractions": [10.5, 5.5, 26],
    "no numbers": ["a", "b"],
    "nested": [[10, 5], [27, 0]],
    "nothing": None,
}

USES = {
    "RLEMasks": lambda rle: RLEMasks([rle], (H, W)),
    "rle_ious": lambda rle: rle_ious([rle], [GOOD]),
    "rle_union": lambda rle: rle_union([GOOD, rle]),
    "visible_masks": lambda rle: visible_masks([rle], [0.5], H, W),
    "count_matches": lambda rle: count_matches([GOOD], [0], [GOOD, rle, rle], [0, 0, 0], [False, True, True], [0.5]),
    "suppress_covered": lambda rle: suppress_covered([GOOD, rle], np.array([0.9, 0.8]), np.array([0, 0]), 0.5),
    "precision_and_recall": lambda rle: _evaluate(rle),
    "ground truth": lambda rle: ground_truth_rles(_entry("no_file.png", rle)),
}


def _evaluate(rle, library=None):
    dataset = {"images": [{"id": 1, "height": H, "width": W}], "categories": [{"id": 0, "name": "a"}]}
    truth = {"id": 1, "image_id": 1, "category_id": 0, "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 5.0}
    dataset["annotations"] = [{**truth, "segmentation": GOOD}]
    found = [{"image_id": 1, "category_id": 0, "score": 0.5, "segmentation": rle}]
    return precision_and_recall(dataset, found, "segm", 100, library)


def _entry(path, segmentation):
    annotation = {"bbox": [0, 0, 4, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "segmentation": segmentation}
    return {"file_name": str(path), "image_id": 1, "height": H, "width": W, "annotations": [annotation]}


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.zeros((H, W, 3), np.uint8))
    return path


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("fault", CORRUPT)
def test_corrupt_runs_are_refused_by_whoever_takes_masks(use, fault):
    with pytest.raises(ValueError, match=r"RLE|mask|counts"):
        USES[use]({"size": [H, W], "counts": CORRUPT[fault]})


@pytest.mark.parametrize("fault", CORRUPT)
def test_corrupt_runs_are_refused_by_check_and_mapper_by_name(image, fault):
    entry = _entry(image, {"size": [H, W], "counts": CORRUPT[fault]})
    with pytest.raises(DataError, match=r"image\.png, annotation 0"):
        check_dataset([entry])
    assert check_dataset([entry], on_error="skip") == []  # an image whose objects are all bad is not without any
    with pytest.raises(ValueError, match=r"image\.png: annotation 0"):
        InstanceMapper(True, [])(entry)


@pytest.mark.parametrize("size", [[2**40, 2**40], [2**16, 2**16], [-6, -7]])
def test_sizes_that_overflow_are_refused(size):
    with pytest.raises(ValueError, match="must have 0 to"):
        canonical_rles([{"size": size, "counts": []}])


def test_more_runs_than_pixels_are_written_anew():
    """Sound by its sum, but pycocotools' union has room for a run a pixel."""
    padded = {"size": [2, 2], "counts": [1, 1] + [0] * 5000 + [2]}
    mask = np.zeros((2, 2), np.uint8)
    mask[1, 0] = 1
    expected = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    assert canonical_rles([padded])[0]["counts"] == expected
    assert rle_union([padded, padded])["counts"] == expected
    assert RLEMasks([padded], (2, 2))[0]["counts"] == expected
    assert rle_overlaps([padded], [padded]).tolist() == [[1.0]]


@pytest.mark.parametrize("library", ["hotcoco", "pycocotools"])
def test_both_libraries_are_given_the_checked_masks(library):
    pytest.importorskip(library)
    precision, recall, _ = _evaluate({"size": [H, W], "counts": [10, 5, 0, 0, 0, 0, 27]}, library)
    assert recall[..., 0].max() == 1
    assert precision[..., 0].max() == pytest.approx(1)


def test_random_strings_are_refused_or_give_masks_of_the_image():
    rng = np.random.default_rng(0)
    accepted = 0
    for _ in range(3000):
        top = 54 if rng.random() < 0.8 else 114  # numbers of one character, mostly
        text = rng.integers(47, top, rng.integers(0, 5)).astype(np.uint8).tobytes()
        try:
            (rle,) = canonical_rles([{"size": [2, 3], "counts": text}])
        except ValueError:
            continue
        accepted += 1
        assert coco_mask.decode(rle).sum() == rle_areas([rle])[0] <= 6
    assert accepted > 5


COORDINATES = [1e3, 1e8, 4.3e8, 2e9, 1e18, 1.7e308, -1e8, float("inf"), float("nan")]


@pytest.mark.parametrize("value", COORDINATES)
def test_far_coordinates_are_refused_by_name(image, value):
    entry = _entry(image, [[0.0, 0, value, 3, 2, 4]])
    with pytest.raises(DataError, match=r"image\.png, annotation 0: .*(far outside|not finite)"):
        check_dataset([entry])
    assert check_dataset([entry], on_error="skip") == []  # an image whose objects are all bad is not without any
    with pytest.raises(ValueError, match=r"image\.png: annotation 0 .*(far outside|not finite)"):
        InstanceMapper(True, [])(entry)
    with pytest.raises(ValueError, match=r"annotation 0: .*(far outside|not finite)"):
        ground_truth_rles(entry)
    polygon = np.array([0.0, 0, value, 3, 2, 4])
    with pytest.raises(ValueError, match=r"far outside|not finite"):
        polygons_to_rle([polygon], H, W)
    with pytest.raises(ValueError, match=r"far outside|not finite"):
        polygons_to_bitmasks(PolygonMasks([[polygon]]), H, W)
    if not abs(value) < 1e5:
        with pytest.raises(ValueError, match=r"larger than|not finite"):
            areas_in_boxes(PolygonMasks([[polygon]]), torch.tensor([[0.0, 0, 4, 4]]))


def test_an_endless_outline_is_refused_before_memory_is_taken():
    zigzag = np.tile([0.0, 0, 4000, 4000], 10_000)
    with pytest.raises(ValueError, match="outline"):
        polygons_to_mask([zigzag], 4000, 4000)


@pytest.mark.parametrize("scale", [1.0, 1e100, 8.9e306])
def test_clipping_is_exact_at_all_magnitudes(scale):
    """A triangle of which a corner lies outside: the cut is where the edges meet the border."""
    polygon = np.array([[10.0, 2], [20, 5], [10, 8]]) * scale
    clipped = clip_polygon(polygon, 15 * scale, 10 * scale)
    expected = np.array([[10, 2], [15, 3.5], [15, 6.5], [10, 8]]) * scale
    order = np.lexsort(clipped.T)
    np.testing.assert_allclose(clipped[order] / scale, expected[np.lexsort(expected.T)] / scale, rtol=1e-12)


def test_clipping_at_the_largest_numbers():
    clipped = clip_polygon(np.array([[0.0, 0], [1.7e308, 0], [1.7e308, 1.7e308], [-1.7e308, 1.7e308]]), 10, 20)
    assert np.isfinite(clipped).all()
    assert clipped.min() >= 0
    assert (clipped <= [10, 20]).all()
    with pytest.raises(ValueError, match="not finite"):
        clip_polygon(np.array([[0.0, 0], [np.inf, 0], [1, 1]]), 10, 20)
    with pytest.raises(ValueError, match="not finite"):
        CropResizeTransform((0, 0, 4, 4), (8, 8), (8, 8)).apply_polygons([np.full((3, 2), 1.7e308)])
