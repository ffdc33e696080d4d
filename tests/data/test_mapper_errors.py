"""What InstanceMapper says of bad entries: the file, the annotation and the key."""

import copy

import cv2
import numpy as np
import pytest

from maskrcnn_plus.data.images import ImageReadError
from maskrcnn_plus.data.mapper import InstanceMapper


def broken(entry, **changes):
    entry = copy.deepcopy(entry)
    for key, value in changes.items():
        if key == "annotation":
            entry["annotations"][1].update(value)
        else:
            entry[key] = value
    return entry


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 61}, r"image\.png is 72x60 .*'squares' says 72x61"),
        ({"label_file_name": "missing.png"}, r"missing\.png"),
        ({"annotation": {"label_id": None}}, r"image\.png: annotation 1 needs the key 'label_id'.*labels\.png"),
        ({"annotation": {"label_id": 0}}, r"annotation 1 needs the key 'label_id'"),
        ({"file_name": "nowhere.png"}, r"nowhere\.png"),
    ],
)
def test_errors_of_label_images_name_the_file(label_entry, changes, message):
    with pytest.raises(ValueError, match=message):
        InstanceMapper(True, [])(broken(label_entry, **changes))


def test_label_image_of_another_size_is_refused_with_both_names(label_entry, tmp_path):
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((10, 12), np.uint16))
    label_entry["label_file_name"] = str(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"image\.png is 72x60 .*small\.png is 12x10"):
        InstanceMapper(True, [])(label_entry)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"segmentation": None}, "needs a 'segmentation'"),
        ({"segmentation": []}, "needs a 'segmentation'"),
        ({"segmentation": [[1.0, 2, 3, 4]]}, "at least 3 points"),
        ({"segmentation": [[1.0, 2, 3, 4, 5, 6, 7]]}, "at least 3 points"),
        ({"segmentation": {"size": [10, 10], "counts": [100]}}, r"RLE has size \[10, 10\]"),
        ({"segmentation": {"size": [60, 80], "counts": [100]}}, "do not add up"),
    ],
)
def test_errors_of_coco_annotations_name_file_and_annotation(coco_entry, annotation, message):
    with pytest.raises(ValueError, match=rf"coco\.png: annotation 1 .*{message}"):
        InstanceMapper(True, [])(broken(coco_entry, annotation=annotation))


def test_missing_keys_are_named(label_entry, coco_entry):
    del label_entry["annotations"][3]["category_id"]
    with pytest.raises(ValueError, match="annotation 3 has no 'category_id'"):
        InstanceMapper(True, [])(label_entry)
    with pytest.raises(ValueError, match="needs the key 'annotations'"):
        InstanceMapper(True, [])({"file_name": label_entry["file_name"]})
    for annotation in coco_entry["annotations"]:
        del annotation["segmentation"], annotation["bbox"]
    with pytest.raises(ValueError, match="annotation 0 needs the keys 'bbox'"):
        InstanceMapper(True, [], use_masks=False)(coco_entry)
    with pytest.raises(ValueError, match="min_area"):
        InstanceMapper(True, [], min_area=-1)


def test_damaged_image_is_an_image_read_error(label_entry, tmp_path):
    (tmp_path / "image.png").write_bytes(b"not an image")
    with pytest.raises(ImageReadError, match=r"image\.png"):
        InstanceMapper(True, [])(label_entry)
