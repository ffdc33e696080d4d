"""Dataset dicts that several tests read."""

import cv2
import numpy as np
import pytest
from detectron2.structures import BoxMode


@pytest.fixture
def label_entry(tmp_path):
    """An image of 30 touching squares whose grey level tells the label, its label image and its dataset dict."""
    labels = np.arange(1, 31, dtype=np.uint16).reshape(5, 6).repeat(12, 0).repeat(12, 1) * 7
    labels[::12] = labels[:, ::12] = 0
    cv2.imwrite(str(tmp_path / "image.png"), labels.astype(np.uint8))
    cv2.imwrite(str(tmp_path / "labels.png"), labels)
    annotations = []
    for label_id in np.unique(labels)[1:]:
        y, x = np.nonzero(labels == label_id)
        annotations.append(
            {
                "bbox": [float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": int(label_id) % 3,
                "label_id": int(label_id),
                "iscrowd": 0,
            }
        )
    return {
        "file_name": str(tmp_path / "image.png"),
        "label_file_name": str(tmp_path / "labels.png"),
        "image_id": "squares",
        "height": 60,
        "width": 72,
        "annotations": annotations,
    }


@pytest.fixture
def coco_entry(tmp_path):
    """Polygons of every kind: inner, concave, in two parts; and a function that turns them into RLEs."""
    cv2.imwrite(str(tmp_path / "coco.png"), np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    polygons = [
        [[10.0, 10, 30, 10, 30, 30, 10, 30]],
        [[40.0, 5, 70, 5, 70, 40, 55, 15, 40, 40]],
        [[5.0, 45, 15, 45, 15, 55, 5, 55], [20.0, 45, 30, 45, 30, 55]],
    ]
    annotations = []
    for i, polygon in enumerate(polygons):
        points = np.concatenate(polygon).reshape(-1, 2)
        box = [*points.min(0).tolist(), *(points.max(0) - points.min(0)).tolist()]
        annotations.append({"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": i, "segmentation": polygon})
    return {
        "file_name": str(tmp_path / "coco.png"),
        "image_id": 7,
        "height": 60,
        "width": 80,
        "annotations": annotations,
    }
