"""Folders of images and label images.

A label image has the size of its image; 0 is background and k > 0 is the k-th object. Layouts that are understood:

    root/images/ID.png   root/labels/ID.png   root/splits.json: {"train": [ID, ...], "val": [ID, ...]}
    root/train/images/ID.png   root/train/labels/ID.png   root/val/images/...
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from scipy import ndimage

from maskrcnn_plus.data.check import DataError, report_problems
from maskrcnn_plus.data.check_cache import fingerprint, get_cached, pack, unpack
from maskrcnn_plus.data.formats.folders import list_files, read_splits, suggest
from maskrcnn_plus.data.images import IMAGE_SUFFIXES, ImageReadError, read_image_size, read_label_map
from maskrcnn_plus.data.label_check import label_warnings, measure_labels

logger = logging.getLogger(__name__)

_LABEL_SUFFIXES = (".png", ".tif", ".tiff")
_DENSE_LABELS = 65535


def label_map_annotations(label_map: np.ndarray, categories: Mapping[int, int] | None = None) -> list[dict]:
    """List the objects of a label image.

    Args:
        label_map: [H, W] integers, 0 = background.
        categories: category id of each label; None makes every object category 0.

    Returns:
        One Detectron2 annotation an object, in ascending label order: `bbox` (x0, y0, x1, y1 in pixels, x1 and y1
        exclusive) with `bbox_mode` XYXY_ABS, `category_id`, `label_id`, `area` in pixels, `iscrowd` 0.
    """
    if not label_map.any():
        return []
    label_ids = None
    if label_map.max() > _DENSE_LABELS:  # the tables below have an entry for each possible label
        label_ids, dense = np.unique(label_map, return_inverse=True)
        label_map = dense.reshape(label_map.shape) + (label_ids[0] != 0)  # [H, W]
        label_ids = label_ids if label_ids[0] == 0 else np.concatenate([[0], label_ids])
    areas = np.bincount(label_map.ravel())
    annotations = []
    for index, window in enumerate(ndimage.find_objects(label_map), start=1):
        if window is None:
            continue
        label_id = index if label_ids is None else int(label_ids[index])
        rows, columns = window
        box = [float(columns.start), float(rows.start), float(columns.stop), float(rows.stop)]
        category = 0 if categories is None else categories[label_id]
        annotations.append(_annotation(label_id, int(areas[index]), box, category))
    return annotations


@dataclass(frozen=True)
class LabelMapFolder:
    """The data set function of a folder: reads it on the first call, and returns fresh dicts on every call."""

    root: str
    split: str | None
    image_dir: str
    label_dir: str
    on_error: str
    _packed: list[bytes] = field(default_factory=list, compare=False, repr=False)

    def __call__(self) -> list[dict]:
        """Return the dataset dicts, sorted by image id."""
        if not self._packed:
            self._packed.append(pack(self._load()))
        return unpack(self._packed[0])

    def _load(self) -> list[dict]:
        """Read the folder; label images that are known are not read again."""
        folder, ids = self._find_split()
        problems: list[str] = []
        images = list_files(os.path.join(folder, self.image_dir), IMAGE_SUFFIXES, problems)
        labels = list_files(os.path.join(folder, self.label_dir), _LABEL_SUFFIXES, problems)
        pairs = {}
        for image_id in sorted(images) if ids is None else ids:
            if image_id not in images:
                near = suggest(image_id, images)
                problems.append(
                    f"{os.path.join(folder, 'splits.json')}: split '{self.split}' names the image {image_id!r}, but "
                    f"{os.path.join(folder, self.image_dir)} has no file of this name (without extension).{near}"
                )
            elif image_id not in labels:
                expected = os.path.join(folder, self.label_dir, f"{image_id}.png")
                problems.append(
                    f"{images[image_id]}: no label image {expected} (or .tif). "
                    "Add it (all zeros if the image has no objects) or remove the image."
                )
            else:
                pairs[image_id] = images[image_id], labels[image_id]
        key = fingerprint(pairs.items(), itertools.chain.from_iterable(pairs.values()))
        found = get_cached(key, lambda: _read_folder(pairs))
        records = [_record(image_id, *pairs[image_id], entry) for image_id, entry in found["images"].items()]
        report_problems(problems + found["problems"], self.on_error)
        named = [path for _, label in pairs.values() if os.path.isfile(path := f"{os.path.splitext(label)[0]}.json")]
        if named:
            logger.warning(
                f"{named[0]} names classes of objects; here all objects are of one class. A folder that is registered "
                "with maskrcnn_plus.data.folder.register_folder keeps them."
            )
        measured = {pairs[image_id][1]: each["labels"] for image_id, each in found["images"].items()}
        for warning in label_warnings(measured):
            logger.warning(warning)
        if not records:
            raise DataError(
                f"{os.path.join(folder, self.image_dir)}: no image with a label image was found. "
                f"Images must end in {', '.join(IMAGE_SUFFIXES)}."
            )
        return records

    def _find_split(self) -> tuple[str, list[str] | None]:
        """Return the folder that holds the image folder, and the image ids if a list selects them."""
        if not os.path.isdir(self.root):
            raise DataError(
                f"Data set folder {self.root!r} does not exist. Give the folder of your data, "
                "for example with dataset.root=/path/to/data."
            )
        if self.split is None:
            return self.root, None
        lists = read_splits(os.path.join(self.root, "splits.json"))
        if self.split in lists:
            return self.root, lists[self.split]
        if os.path.isdir(os.path.join(self.root, self.split, self.image_dir)):
            return os.path.join(self.root, self.split), None
        entries = sorted(os.listdir(self.root))
        folders = [entry for entry in entries if os.path.isdir(os.path.join(self.root, entry, self.image_dir))]
        splits = [*lists, *folders]
        raise DataError(
            f"{self.root}: there is no split '{self.split}'. "
            + (f"Available: {', '.join(splits)}.{suggest(self.split, splits)}" if splits else "")
            + ("" if splits else f"Add splits.json or folders {self.split}/{self.image_dir}, or use no split.")
        )


def _read_folder(pairs: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Read image headers and label images.

    Args:
        pairs: paths of image and label image by image id.

    Returns:
        Data for JSON: `images` ({image id: {"size": [H, W], "objects": [[label id, area, x0, y0, x1, y1], ...],
        "labels": as of `measure_labels`}}) and `problems`.
    """
    images, problems = {}, []
    for image_id, paths in pairs.items():
        try:
            images[image_id] = _read_pair(*paths)
        except ImageReadError as error:
            problems.append(str(error))
    return {"images": images, "problems": problems}


def _read_pair(image_path: str, label_path: str) -> dict[str, Any]:
    """Read one image header and one label image."""
    height, width = read_image_size(image_path)
    label_map = read_label_map(label_path)  # [H, W]
    if label_map.shape != (height, width):
        raise ImageReadError(
            f"{label_path}: the label image is {label_map.shape[0]} high x {label_map.shape[1]} wide, its image "
            f"{image_path} is {height} high x {width} wide. Both must have the same size."
        )
    annotations = label_map_annotations(label_map)
    objects = [[each["label_id"], each["area"], *each["bbox"]] for each in annotations]
    return {"size": [height, width], "objects": objects, "labels": measure_labels(label_map, annotations)}


def _record(image_id: str, image_path: str, label_path: str, found: dict[str, Any]) -> dict:
    """Make a dataset dict of what `_read_pair` found."""
    return {
        "file_name": image_path,
        "image_id": image_id,
        "height": found["size"][0],
        "width": found["size"][1],
        "label_file_name": label_path,
        "annotations": [_annotation(label_id, area, box, 0) for label_id, area, *box in found["objects"]],
    }


def _annotation(label_id: int, area: int, box: list[float], category: int) -> dict:
    """Make an annotation of an object of a label image; see `label_map_annotations`."""
    return {
        "bbox": box,
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": category,
        "label_id": label_id,
        "area": area,
        "iscrowd": 0,
    }
