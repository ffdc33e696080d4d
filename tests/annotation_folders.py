"""Folders of annotations for tests: images, and masks that are drawn by hand."""

import numpy as np
import tifffile
from PIL import Image

from maskrcnn_plus.data.formats import read
from maskrcnn_plus.masks.polygons import polygons_to_mask

HEIGHT, WIDTH = 40, 60


def write_image(path, height=HEIGHT, width=WIDTH):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 90, dtype=np.uint8)).save(path)
    return path


def rectangle(x0, y0, x1, y1):
    """Mask of the pixels [x0, x1) x [y0, y1)."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def masks_of(record):
    """Masks of a dataset dict, decoded by pycocotools."""
    from pycocotools import mask as coco_mask

    if "label_file_name" in record:
        label_map = tifffile.imread(path) if (path := record["label_file_name"]).endswith(".tif") else Image.open(path)
        return [np.asarray(label_map) == entry["label_id"] for entry in record["annotations"]]
    size = record["height"], record["width"]
    return [
        coco_mask.decode(entry["segmentation"]).astype(bool)
        if isinstance(entry["segmentation"], dict)
        else polygons_to_mask(entry["segmentation"], *size)
        for entry in record["annotations"]
    ]


def read_one(path, name=None):
    """The only image of a folder, and all that was read."""
    data = read(path, name)
    (record,) = [record for records in data.splits.values() for record in records]
    return record, data
