"""Small COCO files for tests."""

import json
from pathlib import Path

import cv2
import numpy as np


def square(number, image_id=1, category_id=1, **changes):
    """An annotation: a square of 8 px whose place tells its number."""
    x = 2 + 10 * (number % 5)
    entry = {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": 0,
        "area": 64.0,
        "bbox": [x, 4, 8, 8],
        "segmentation": [[x, 4, x + 8, 4, x + 8, 12, x, 12]],
        **changes,
    }
    return {key: value for key, value in entry.items() if value is not ...}


def rle(number=0):
    """The square as an uncompressed RLE of an image of 40 x 60 pixels."""
    mask = np.zeros((40, 60), np.uint8)
    x = 2 + 10 * (number % 5)
    mask[4:12, x : x + 8] = 1
    flat = np.concatenate([[0], mask.ravel(order="F"), [2]])
    runs = np.diff(np.flatnonzero(np.diff(flat, prepend=2)))
    return {"size": [40, 60], "counts": [int(run) - (index == 0) for index, run in enumerate(runs)]}


def image(number, name="", **changes):
    entry = {"id": number, "file_name": name or f"{number}.png", "height": 40, "width": 60, **changes}
    return {key: value for key, value in entry.items() if value is not ...}


def category(number, name):
    return {"id": number, "name": name}


def write_coco(folder, images, annotations, categories, name="a.json", **further):
    """Write a json, and a grey picture for every image that it names; returns (json, folder)."""
    folder = Path(folder)
    for entry in images:
        path = folder / str(entry.get("file_name", "x.png")).replace("\\", "/").rsplit("/", 1)[-1]
        if not path.exists():
            cv2.imwrite(str(path), np.full((40, 60, 3), 90, np.uint8))
    content = {"images": images, "annotations": annotations, "categories": categories, **further}
    (folder / name).write_text(json.dumps(content))
    return str(folder / name), str(folder)
