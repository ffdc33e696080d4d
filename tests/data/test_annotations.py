"""Annotations as tools write them: what a person can understand is understood and said, the rest is named."""

import copy
import logging

import cv2
import numpy as np
import pytest
from detectron2.structures import BoxMode

from maskrcnn_plus.data.annotations import normalize_annotation, normalize_segmentation
from maskrcnn_plus.data.check import DataError, check_dataset
from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.data.screening import screen
from maskrcnn_plus.evaluation.ground_truth import ground_truth_rles
from maskrcnn_plus.masks.label_map import masks_to_rles
from maskrcnn_plus.rle import canonical_rles

H, W = 40, 60
SQUARE = [10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0]
POINTS = [[10.0, 5.0], [30.0, 5.0], [30.0, 25.0], [10.0, 25.0]]
MASK = np.zeros((H, W), dtype=bool)
MASK[5:25, 10:30] = True
RLE = canonical_rles([{"size": [H, W], "counts": [10 * H + 5] + [20, 20] * 19 + [20, 30 * H + 15]}])[0]


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.zeros((H, W, 3), np.uint8))
    return str(path)


def annotation(**changes):
    box = {"bbox": [10.0, 5.0, 20.0, 20.0], "bbox_mode": BoxMode.XYWH_ABS}
    return {"id": 9, **box, "category_id": 0, "iscrowd": 0, "segmentation": [SQUARE], **changes}


def record(image, *annotations):
    return {"file_name": image, "image_id": 1, "height": H, "width": W, "annotations": list(annotations)}


UNDERSTOOD = {
    "points in a list": ({"segmentation": [POINTS]}, "as points"),
    "points alone": ({"segmentation": POINTS}, "as points"),
    "tuples": ({"segmentation": [[tuple(point) for point in POINTS]]}, "as points"),
    "a flat list": ({"segmentation": SQUARE}, "not in a list"),
    "text": ({"segmentation": [[str(value) for value in SQUARE]]}, "as text"),
    "one text": ({"segmentation": [["10", *SQUARE[1:]]]}, "as text"),
    "text in points": ({"segmentation": [[[str(x), str(y)] for x, y in POINTS]]}, "as text"),
    "an RLE in a list": ({"segmentation": [RLE]}, "in a list"),
    "text of bytes": ({"segmentation": {**RLE, "counts": str(RLE["counts"].encode())}}, "text of bytes"),
    "an array": ({"segmentation": MASK}, "as arrays"),
    "bbox as text": ({"bbox": ["10", "5", "20", "20.0"]}, "as text"),
    "empty bbox": ({"bbox": []}, "no bbox"),
    "bbox None": ({"bbox": None}, "no bbox"),
    "no mode either": ({"bbox": None, "bbox_mode": None}, "no bbox"),
    "corners": ({"bbox": [10.0, 5.0, 30.0, 25.0]}, "does not fit its mask"),
    "a box elsewhere": ({"bbox": [40.0, 30.0, 5.0, 5.0]}, "does not fit its mask"),
}


def test_text_of_bytes_with_backslashes_is_the_same_mask():
    masks = np.random.default_rng(0).random((20, H, W)) < 0.1
    rles = masks_to_rles(masks)
    assert any("\\" in rle["counts"] for rle in rles)
    for rle in rles:
        assert normalize_segmentation({**rle, "counts": str(rle["counts"].encode())}, (H, W))[0] == rle


@pytest.mark.parametrize("case", UNDERSTOOD)
def test_what_a_person_understands_is_understood_and_said(image, case, caplog):
    changes, said = UNDERSTOOD[case]
    before = annotation(**changes)
    entry = record(image, before)
    kept = copy.deepcopy(entry)
    (cleaned,) = check_dataset([entry])
    (own,) = cleaned["annotations"]
    np.testing.assert_equal(entry, kept)
    assert own["bbox"] == [10.0, 5.0, 20.0, 20.0]
    assert own["bbox_mode"] == BoxMode.XYWH_ABS
    (warning,) = [r.getMessage() for r in caplog.records if said in r.getMessage()]
    assert "image.png, annotation 0 (id 9)" in warning
    for source in (cleaned, entry):  # whether the check came first or not
        (mask,) = ground_truth_rles(source)
        assert mask == RLE
        example = InstanceMapper(True, [])(source)["instances"]
        assert example.gt_boxes.tensor.tolist() == [[10, 5, 30, 25]]
    caplog.clear()
    assert check_dataset([cleaned]) == [cleaned]
    assert not caplog.records


REFUSED = {
    "two points": ({"segmentation": [[1.0, 2, 3, 4]]}, "polygon 0 has 4 numbers"),
    "two points, nested": ({"segmentation": [[[1.0, 2], [3, 4]]]}, "polygon 0 has 4 numbers"),
    "an odd number": ({"segmentation": [SQUARE, SQUARE[:7]]}, "polygon 1 has 7 numbers"),
    "points of three": ({"segmentation": [[[1, 2, 3]] * 4]}, "polygon 0"),
    "no numbers": ({"segmentation": [["a"] * 8]}, "polygon 0"),
    "None among numbers": ({"segmentation": [[*SQUARE[:7], None]]}, "polygon 0"),
    "text": ({"segmentation": "10 5 30 5 30 25"}, "no mask"),
    "a number": ({"segmentation": 7}, "no mask"),
    "no polygon": ({"segmentation": [[]]}, "polygon 0 has 0 numbers"),
    "a line": ({"segmentation": [[1.0, 1, 5, 5, 9, 9]]}, "no area"),
    "a point": ({"segmentation": [[4.0, 4] * 4]}, "no area"),
    "normalised": ({"segmentation": [[0.1, 0.1, 0.5, 0.1, 0.5, 0.6]]}, "between 0 and 1"),
    "outside": ({"segmentation": [[100.0, 5, 110, 5, 110, 25]], "bbox": []}, "outside of the image"),
    "ten times": ({"segmentation": [[10 * value for value in SQUARE]]}, "far outside"),
    "200 million": ({"segmentation": [[2e8, *SQUARE[1:]]]}, "far outside"),
    "an empty RLE": ({"segmentation": {"size": [H, W], "counts": [H * W]}}, "mask is empty"),
    "exchanged": ({"segmentation": {"size": [W, H], "counts": [H * W]}}, "Height and width are exchanged"),
    "no mask": ({"segmentation": None}, "no mask"),
    "NaN in bbox": ({"bbox": [10, float("nan"), 20, 20]}, "not finite"),
    "negative bbox": ({"bbox": [30, 25, -20, -20]}, "is empty: width -20"),
    "words in bbox": ({"bbox": ["a", 1, 2, 3]}, "4 numbers"),
    "bbox of bbox": ({"bbox": [[10, 5, 20, 20], [1, 2]]}, "4 numbers"),
    "bbox a number": ({"bbox": 7}, "4 numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_rest_is_named_and_can_be_skipped(image, case):
    changes, message = REFUSED[case]
    entry = record(image, annotation(id=1), annotation(id=2, **changes))
    with pytest.raises(DataError, match=r"^1 problem .*\n.*image\.png, annotation 1 \(id 2\): ") as error:
        check_dataset([entry])
    assert message in str(error.value)
    (cleaned,) = check_dataset([entry], on_error="skip")
    assert cleaned["annotations"] == [entry["annotations"][0]]


def test_what_lies_partly_outside_keeps_its_polygon(image):
    polygon = [-4.0, -3, 30, -3, 30, 25, -4, 25]
    entry = record(image, annotation(segmentation=[polygon], bbox=[-4.0, -3, 34, 28]))
    assert check_dataset([entry]) == [entry]


def _mutate(rng, own):
    """A random annotation: sound, or spoilt in one place."""
    kind = rng.integers(0, 12)
    own = copy.deepcopy(own)
    flat = own["segmentation"][0] if isinstance(own["segmentation"], list) else None
    if kind == 0 and flat:
        flat[rng.integers(len(flat))] = rng.choice([1e9, -1e9, np.nan, 150.0])
    elif kind == 1 and flat:
        flat.pop()
    elif kind == 2 and flat:
        own["segmentation"].append(flat[:4])
    elif kind == 3:
        own["bbox"][rng.integers(4)] = float(rng.choice([-50.0, 0.0, np.nan, 200.0]))
    elif kind == 4 and flat:
        own["segmentation"] = [[value / 100 for value in flat]]
    elif kind == 5 and flat:
        own["segmentation"] = [[value * rng.choice([0.0, 1.5, 3.0]) for value in flat]]
    elif kind == 6:
        own["segmentation"] = {"size": [H, W], "counts": RLE["counts"][: rng.integers(1, 60)]}
    elif kind == 7:
        own["segmentation"] = RLE
    return own


def test_nothing_that_needs_a_look_is_passed_by_the_screening():
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(40):
        # Few a call: an entry that NumPy cannot read sends all of its call to be looked at.
        entries = []
        for _ in range(5):
            low = rng.uniform(0, 30, 2)
            corners = np.concatenate([low, low + rng.uniform(3, 20, 2)])
            x0, y0, x1, y1 = corners.tolist()
            own = annotation(segmentation=[[x0, y0, x1, y0, x1, y1, x0, y1]], bbox=[x0, y0, x1 - x0, y1 - y0])
            entries.append((_mutate(rng, own), (H, W), False))
        for (own, size, _), good in zip(entries, screen(entries)[0].tolist(), strict=True):
            try:
                outcome = normalize_annotation(own, size)
            except ValueError:
                outcome = None
            passed += good
            assert not good or outcome == ({}, [])
    assert passed > 60


def test_boxes_as_corners_in_a_whole_data_set_are_one_warning_with_the_cause(image, caplog):
    boxes = [[10.0, 5, 30, 25]] * 6
    check_dataset([record(image, *(annotation(id=k, bbox=box) for k, box in enumerate(boxes)))])
    texts = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(texts) == 2
    assert "and of 5 more" in texts[0]
    assert "6 of 6 boxes, which are taken for XYWH_ABS" in texts[1]
    assert "read as the corners x0, y0, x1, y1 they do" in texts[1]


def _scattered(image, factor, images=12):
    """Images full of squares whose coordinates are multiplied."""
    rng = np.random.default_rng(0)
    records = []
    for _ in range(images):
        low = np.append(rng.uniform(0, [W - 8, H - 8], (9, 2)), [[W - 8, H - 8]], axis=0) * factor
        squares = [[x, y, x + 8 * factor, y, x + 8 * factor, y + 8 * factor, x, y + 8 * factor] for x, y in low]
        boxes = [[x, y, 8 * factor, 8 * factor] for x, y in low]
        own = [annotation(segmentation=[s], bbox=box) for s, box in zip(squares, boxes, strict=True)]
        records.append(record(image, *own))
    return records


@pytest.mark.parametrize("factor", [1.5, 3, 10])
def test_coordinates_of_larger_images_are_told_as_the_cause(image, factor):
    records = _scattered(image, factor)
    with pytest.raises(DataError, match=rf"Likely cause: in 12 of 12 images .*about {factor}\.?0? times"):
        check_dataset(records)


def test_coordinates_of_smaller_images_are_told(image, caplog):
    assert len(check_dataset(_scattered(image, 0.5))) == 12
    assert "the left 50% and the upper 50%" in caplog.text
    caplog.clear()
    check_dataset(_scattered(image, 1.0))
    assert not caplog.text


def test_normalised_coordinates_are_told_as_the_cause(image):
    parts = [value / divisor for value, divisor in zip(SQUARE, [W, H] * 4, strict=True)]
    records = [record(image, *[annotation(segmentation=[parts])] * 3)]
    with pytest.raises(DataError, match="Likely cause: the coordinates of 3 of 3 masks are parts of the image's size"):
        check_dataset(records)


def test_the_size_of_a_resized_file_is_compared(image):
    entry = {**record(image, annotation()), "height": 2 * H, "width": 2 * W}
    with pytest.raises(DataError, match=r"80 high x 120 wide, the file is 40 high x 60 wide.* by 0\.5"):
        check_dataset([entry])
