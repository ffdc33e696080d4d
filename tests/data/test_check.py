"""The data check finds each planted error and nothing else."""

import copy
import logging
import pickle

import numpy as np
import pytest
import tifffile
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from maskrcnn_plus.data.check import DataError, check_dataset, checked_dataset
from maskrcnn_plus.rle import canonical_rles

POLYGON = [2.0, 2.0, 8.0, 2.0, 8.0, 8.0]


@pytest.fixture
def record(tmp_path):
    """A good image of 20 x 30 pixels with one polygon, one RLE and one box in XYXY."""
    path = tmp_path / "good.png"
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(path)
    (rle,) = canonical_rles([{"size": [20, 30], "counts": [5, 10, 585]}])
    return {
        "file_name": str(path),
        "image_id": 1,
        "height": 20,
        "width": 30,
        "annotations": [
            {
                "id": 11,
                "bbox": [2, 2, 6, 6],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 0,
                "segmentation": [POLYGON],
            },
            {"bbox": [0, 5, 1, 15], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "segmentation": rle, "iscrowd": 1},
            {
                "bbox": [-3, -3, 33, 23],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 2,
                "segmentation": [[-3.0, -3.0, 33.0, -3.0, 33.0, 23.0]],
            },
        ],
    }


@pytest.fixture
def label_record(tmp_path):
    """A good image with a label image that holds the objects 1 and 4."""
    labels = np.zeros((20, 30), dtype=np.uint16)
    labels[2:5, 3:9], labels[10:12, 10:15] = 1, 4
    Image.fromarray(labels).save(tmp_path / "labels.png")
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "image.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "label_file_name": str(tmp_path / "labels.png"),
        "height": 20,
        "width": 30,
        "annotations": [
            {"bbox": [3, 2, 9, 5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "label_id": 1},
            {"bbox": [10, 10, 15, 12], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "label_id": 4},
        ],
    }


def test_good_data_passes_unchanged(record, label_record, caplog):
    dicts = [record, label_record, {**label_record, "annotations": []}]
    before = copy.deepcopy(dicts)
    for decode in (False, True):
        assert check_dataset(dicts, num_classes=3, decode=decode) == before
    assert dicts == before
    assert check_dataset([], num_classes=3) == []
    assert not [entry for entry in caplog.records if entry.levelno >= logging.WARNING]


ANNOTATION_ERRORS = {
    "width 0": {"bbox": [2, 2, 0, 6]},
    "height -1": {"bbox": [2, 2, 6, -1]},
    "outside of the image": {"bbox": [30, 2, 6, 6]},
    "not finite": {"bbox": [2, float("nan"), 6, 6]},
    "4 numbers": {"bbox": [2, 2, 6]},
    "bbox_mode None": {"bbox_mode": None},
    "category_id 3 is unknown: the data set has 3 classes, 0..2": {"category_id": 3},
    "category_id -1": {"category_id": -1},
    "category_id 'cell'": {"category_id": "cell"},
    "it has no mask": {"segmentation": []},
    "polygon 1 has 4 numbers": {"segmentation": [POLYGON, [1, 2, 3, 4]]},
    "polygon 0 has 7 numbers": {"segmentation": [[*POLYGON, 1.0]]},
    "polygon 0 has coordinates that are not finite": {"segmentation": [[*POLYGON[:5], float("inf")]]},
    "polygon 0 is 2.0": {"segmentation": [2.0, POLYGON]},
    "the RLE has size [30, 20] and must have [height, width] = [20, 30]": {
        "segmentation": {"size": [30, 20], "counts": [600]}
    },
    "the RLE has size [20, 30]": {"segmentation": {"size": [20, 30]}},
    "add up to 599": {"segmentation": {"size": [20, 30], "counts": [599]}},
    "bit mask is (3, 3)": {"segmentation": np.ones((3, 3), dtype=bool)},
}


@pytest.mark.parametrize(("message", "change"), ANNOTATION_ERRORS.items(), ids=ANNOTATION_ERRORS.keys())
def test_one_bad_annotation_is_named_and_dropped_alone(record, message, change):
    good = copy.deepcopy(record)
    record["annotations"][0].update(change)
    with pytest.raises(DataError) as error:
        check_dataset([good, record], num_classes=3)
    text = str(error.value)
    assert text.startswith("1 problem in the data")
    assert message in text
    assert f"{record['file_name']}, annotation 0 (id 11): " in text
    cleaned = check_dataset([good, record], on_error="skip", num_classes=3)
    assert cleaned == [good, {**good, "annotations": good["annotations"][1:]}]
    assert len(record["annotations"]) == 3


def test_label_ids_are_compared_when_decoding(label_record):
    label_record["annotations"][1]["label_id"] = 3
    assert check_dataset([label_record]) == [label_record]
    with pytest.raises(DataError, match=r"annotation 1: label_id 3 does not occur in .*labels\.png"):
        check_dataset([label_record], decode=True)
    del label_record["annotations"][1]["label_id"]
    with pytest.raises(DataError, match="annotation 1: it has no mask"):
        check_dataset([label_record])


def test_a_folder_of_planted_errors(tmp_path, record, label_record, caplog):
    def variant(**changes):
        return {**copy.deepcopy(label_record), **changes}

    whole = tmp_path / "image.png"
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    noise = np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:300])
    tifffile.imwrite(tmp_path / "nan.tif", np.full((20, 30), np.nan, dtype=np.float32))
    Image.fromarray(noise[:19]).save(tmp_path / "short_labels.png")
    two_wrong = copy.deepcopy(record)
    two_wrong["annotations"][0].update(bbox=[1, 1, 0, 0], category_id=9)
    headers = {
        "gone.png: there is no such file": variant(file_name=str(tmp_path / "gone.png")),
        "empty.png: the file is empty": variant(file_name=str(tmp_path / "empty.png")),
        "text.png: cannot be read": variant(file_name=str(tmp_path / "text.png")),
        "image.png: the annotation says 30 high x 20 wide, the file is 20 high x 30 wide": variant(height=30, width=20),
        "short_labels.png: the label image is 19 high": variant(label_file_name=str(tmp_path / "short_labels.png")),
        "no_labels.png: there is no such file": variant(label_file_name=str(tmp_path / "no_labels.png")),
        "no file_name": {"annotations": []},
    }
    pixels = {
        "cut.png: cannot be read": variant(file_name=str(tmp_path / "cut.png")),
        "nan.tif: some pixel values are NaN": variant(file_name=str(tmp_path / "nan.tif")),
    }
    good = [variant(), record]
    dicts = [good[0], *headers.values(), *pixels.values(), two_wrong, good[1]]

    with pytest.raises(DataError) as error:
        check_dataset(dicts, num_classes=3, decode=True)
    text = str(error.value)
    assert text.startswith(f"{len(headers) + len(pixels) + 2} problems")
    for message in [*headers, *pixels, "category_id 9", "is empty: width 0"]:
        assert message in text
    with pytest.raises(DataError, match=f"^{len(headers) + 2} problems"):
        check_dataset(dicts, num_classes=3)

    caplog.clear()
    cleaned = check_dataset(dicts, on_error="skip", num_classes=3, decode=True)
    assert cleaned == [good[0], {**two_wrong, "annotations": two_wrong["annotations"][1:]}, good[1]]
    (warning,) = caplog.records
    assert all(message in warning.getMessage() for message in headers)
    assert whole.exists()


def test_a_long_list_is_cut_and_counted(record):
    record["annotations"] = [{**record["annotations"][0], "category_id": 9} for _ in range(33)]
    with pytest.raises(DataError) as error:
        check_dataset([record], num_classes=3)
    text = str(error.value)
    assert text.startswith("33 problems")
    assert text.endswith("... and 13 more")
    assert text.count("category_id 9") == 20


def test_on_error_is_checked(record):
    with pytest.raises(ValueError, match="on_error='warn'"):
        check_dataset([record], on_error="warn")


@pytest.fixture
def register():
    names = []

    def add(name, dicts, **metadata):
        DatasetCatalog.register(name, lambda: copy.deepcopy(dicts))
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_checked_dataset_equals_detectron2_on_good_data(record, label_record, register):
    from detectron2.data import get_detection_dataset_dicts

    empty = {**label_record, "annotations": []}
    classes = ["a", "b", "c"]
    names = [
        register("check_one", [record, empty], thing_classes=classes),
        register("check_two", [label_record], thing_classes=classes),
    ]
    for filter_empty in (True, False):
        expected = get_detection_dataset_dicts(names, filter_empty=filter_empty)
        assert checked_dataset(names, filter_empty=filter_empty) == expected
    assert checked_dataset("check_two") == [label_record]


def test_checked_dataset_reports_before_detectron2_asserts(record, register):
    name = register("check_bad", [record], thing_classes=["a"])
    with pytest.raises(
        DataError, match=r"good\.png, annotation 1: category_id 1 is unknown: the data set has 1 classes"
    ):
        checked_dataset(name)
    (cleaned,) = checked_dataset(name, on_error="skip")
    assert [entry["category_id"] for entry in cleaned["annotations"]] == [0]


def test_checked_dataset_without_anything_left(record, register):
    with pytest.raises(DataError, match="'check_none' has no images"):
        checked_dataset(register("check_none", []))
    with pytest.raises(DataError, match=r"No usable image is left in check_empty"):
        checked_dataset(register("check_empty", [{**record, "annotations": []}]))
    with pytest.raises(DataError, match=r"dataset\.names"):
        checked_dataset([])
    with pytest.raises(KeyError, match="check_unknown"):
        checked_dataset("check_unknown")


def test_checked_dataset_stands_in_a_config(label_record, register):
    from detectron2.config import LazyCall, instantiate

    name = register("check_config", [label_record], thing_classes=["a"])
    config = LazyCall(checked_dataset)(names=[name], on_error="raise")
    assert instantiate(config) == [label_record]
    assert pickle.loads(pickle.dumps(checked_dataset)) is checked_dataset


def test_negatives_are_kept_where_they_are_wanted_and_crowds_are_no_negatives(record, register):
    empty = {**record, "image_id": "empty", "annotations": []}
    crowd = {**record, "image_id": "crowd", "annotations": [{**each, "iscrowd": 1} for each in record["annotations"]]}
    names = register("check_a", [empty, record, crowd])
    assert [each["image_id"] for each in checked_dataset(names)] == [record["image_id"]]
    assert [each["image_id"] for each in checked_dataset(names, negatives=True)] == [record["image_id"], "empty"]


def test_an_image_whose_annotations_are_all_bad_is_not_one_without_objects(record):
    bad = {**record, "annotations": [{**record["annotations"][0], "category_id": 7}]}
    assert len(check_dataset([record, {**record, "annotations": []}, bad], on_error="skip", num_classes=3)) == 2
