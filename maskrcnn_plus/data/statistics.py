"""Figures of a data set: how many objects of which class and size, how dense, and what its pixels look like.

`measure` reads annotations alone; `sample_pixels` reads images.

Shape shorthand: I images, N objects that are no crowds, in the order of the images.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from detectron2.structures import BoxMode

from maskrcnn_plus.data.annotations import box_ious
from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.diameter import disc_diameter
from maskrcnn_plus.data.image_facts import ImageFacts, read_facts
from maskrcnn_plus.data.images import read_label_map
from maskrcnn_plus.masks.measure import rle_areas, rle_boxes, rle_overlaps
from maskrcnn_plus.masks.polygons import polygons_to_rle

_ROWS = 256  # of a matrix of overlaps at once


@dataclass(frozen=True)
class PixelStatistics:
    """Figures of the pixels of S images.

    Attributes:
        num_images: S, those that could be read.
        unreadable: what is wrong with the others, a line each.
        channels: number of images by their number of channels, alpha left out.
        dtypes: number of images by the type of their values: "uint8", "uint16", "float32" ...
        intensity: float64 [S, 2], 1st and 99.8th percentile of each image's grey values, as they are in the file.
        dark_background: share of the images with objects in which the objects are brighter than the rest; NaN where no
            image has objects.
        mean_saturation: mean over the images of (largest - smallest channel) / (largest value of the type), 0 for grey
            images.
    """

    num_images: int
    unreadable: list[str]
    channels: Counter[int]
    dtypes: Counter[str]
    intensity: np.ndarray = field(repr=False)
    dark_background: float
    mean_saturation: float


@dataclass(frozen=True)
class Statistics:
    """Figures of the annotations of a data set. Crowds are counted in `num_crowds` and nowhere else.

    Attributes:
        class_names: the classes in their order.
        num_images: I.
        num_objects: N.
        num_negatives: images without an object.
        num_crowds: objects with `iscrowd`.
        class_counts: number of objects of each class, by name.
        images_per_class: number of images with an object of each class, by name.
        image_sizes: int64 [I, 2], height and width in pixels.
        objects_per_image: int64 [I].
        box_sizes: float64 [N, 2], width and height of the box around each mask in pixels.
        areas: int64 [N], pixels of each mask.
        classes: int64 [N], index in `class_names`.
        image_index: int64 [N], image of each object.
        box_overlap: float64 [N], highest IoU of the box with that of another object of the same image and class; 0
            where there is none.
        covered: float64 [N], share of the mask that others of the same image and class cover, the shares of several
            added up; 0 in label images, where a pixel belongs to one object.
        pixels: figures of the pixels, where they were read.
    """

    class_names: list[str]
    num_images: int
    num_objects: int
    num_negatives: int
    num_crowds: int
    class_counts: dict[str, int]
    images_per_class: dict[str, int]
    image_sizes: np.ndarray = field(repr=False)
    objects_per_image: np.ndarray = field(repr=False)
    box_sizes: np.ndarray = field(repr=False)
    areas: np.ndarray = field(repr=False)
    classes: np.ndarray = field(repr=False)
    image_index: np.ndarray = field(repr=False)
    box_overlap: np.ndarray = field(repr=False)
    covered: np.ndarray = field(repr=False)
    pixels: PixelStatistics | None = None

    @property
    def diameters(self) -> np.ndarray:
        """Diameter of a disc of each mask's area in pixels, float64 [N]."""
        return disc_diameter(self.areas)

    @property
    def fill(self) -> np.ndarray:
        """Share of each box that its mask covers, float64 [N]."""
        boxes = self.box_sizes.prod(axis=1)
        return np.divide(self.areas, boxes, out=np.zeros_like(boxes), where=boxes > 0)


def measure(
    records: Sequence[dict[str, Any]], class_names: Sequence[str], pixels: PixelStatistics | None = None
) -> Statistics:
    """Measure the annotations of a data set. Image files are not read, and label images only where areas are missing.

    Args:
        records: Detectron2 dataset dicts that `check_dataset` has passed.
        class_names: the classes in the order of `category_id`.
        pixels: kept in the result.

    Raises:
        ValueError: an annotation is malformed.
        ImageReadError: a label image that is needed cannot be read.
    """
    return replace(measure_splits({"": records}, class_names)[""], pixels=pixels)


def measure_splits(splits: Mapping[str, Sequence[dict[str, Any]]], class_names: Sequence[str]) -> dict[str, Statistics]:
    """As `measure`, for each split, and under "" for all together."""
    per_image = {split: [_measure_image(record) for record in records] for split, records in splits.items()}
    found = {split: _collect(splits[split], parts, class_names) for split, parts in per_image.items()}
    everything = [record for records in splits.values() for record in records]
    found[""] = _collect(everything, [part for parts in per_image.values() for part in parts], class_names)
    return found


class _ImageFigures(NamedTuple):
    """Of the n objects of an image that are no crowds: boxes [n, 4] xyxy and the rest [n]; and its number of crowds."""

    boxes: np.ndarray
    areas: np.ndarray
    classes: np.ndarray
    covered: np.ndarray
    num_crowds: int


def _collect(
    records: Sequence[dict[str, Any]], per_image: Sequence[_ImageFigures], class_names: Sequence[str]
) -> Statistics:
    """Figures of all images from those of each."""
    names = [str(name) for name in class_names]
    counts = np.array([len(image.areas) for image in per_image], dtype=np.int64)  # [I]
    boxes = np.concatenate([np.zeros((0, 4)), *(image.boxes for image in per_image)])  # [N, 4]
    classes = np.concatenate([np.zeros(0, dtype=np.int64), *(image.classes for image in per_image)])
    images = np.repeat(np.arange(len(per_image)), counts)
    of_class = np.bincount(classes, minlength=len(names)).tolist()
    with_class = np.bincount(np.unique(np.stack([images, classes]), axis=1)[1], minlength=len(names)).tolist()
    return Statistics(
        class_names=names,
        num_images=len(per_image),
        num_objects=len(boxes),
        num_negatives=int((counts == 0).sum()),
        num_crowds=sum(image.num_crowds for image in per_image),
        class_counts=dict(zip(names, of_class, strict=True)),
        images_per_class=dict(zip(names, with_class, strict=True)),
        image_sizes=np.array([[r["height"], r["width"]] for r in records], dtype=np.int64).reshape(-1, 2),
        objects_per_image=counts,
        box_sizes=boxes[:, 2:] - boxes[:, :2],
        areas=np.concatenate([np.zeros(0, dtype=np.int64), *(image.areas for image in per_image)]),
        classes=classes,
        image_index=images,
        box_overlap=np.concatenate([np.zeros(0), *(highest_ious(image.boxes, image.classes) for image in per_image)]),
        covered=np.concatenate([np.zeros(0), *(image.covered for image in per_image)]),
    )


def sample_pixels(
    records: Sequence[dict[str, Any]], limit: int = 200, seed: int = 0, rule: ChannelRule | None = None
) -> PixelStatistics:
    """Read the pixels of at most `limit` images, drawn by chance; without a rule for channels, images as they are."""
    chosen = sorted(random.Random(seed).sample(range(len(records)), min(limit, len(records))))
    return summarize(read_facts([records[k] for k in chosen], rule))


def summarize(facts: Sequence[ImageFacts | str]) -> PixelStatistics:
    """Figures over images from what `read_facts` gave for them."""
    read = [each for each in facts if isinstance(each, ImageFacts)]
    brighter = [each.brighter for each in read if each.brighter is not None]
    return PixelStatistics(
        num_images=len(read),
        unreadable=[each for each in facts if isinstance(each, str)],
        channels=Counter(each.channels for each in read),
        dtypes=Counter(each.dtype for each in read),
        intensity=np.array([[each.low, each.high] for each in read], dtype=np.float64).reshape(-1, 2),
        dark_background=float(np.mean(brighter)) if brighter else float("nan"),
        mean_saturation=float(np.mean([each.saturation for each in read])) if read else 0.0,
    )


def _measure_image(record: dict[str, Any]) -> _ImageFigures:
    everything = record.get("annotations", [])
    annotations = [each for each in everything if not each.get("iscrowd", 0)]
    crowds = len(everything) - len(annotations)
    classes = np.array([each["category_id"] for each in annotations], dtype=np.int64)
    boxes = get_boxes(annotations)
    if "label_file_name" in record:
        return _ImageFigures(boxes, _label_areas(record, annotations), classes, np.zeros(len(boxes)), crowds)
    size = record["height"], record["width"]
    masks = [each["segmentation"] for each in annotations]
    rles = [mask if isinstance(mask, dict) else polygons_to_rle(mask, *size) for mask in masks]
    areas = rle_areas(rles)
    # A mask thinner than a pixel has no box of its own.
    boxes[areas > 0] = rle_boxes(rles)[areas > 0]
    return _ImageFigures(boxes, areas, classes, covered_shares(rles, boxes, classes), crowds)


def get_boxes(annotations: Sequence[dict[str, Any]]) -> np.ndarray:
    """Boxes of annotations, float64 xyxy [n, 4]; those of `BoxMode.convert`, which takes 0.1 ms a box."""
    boxes = np.array([each["bbox"] for each in annotations], dtype=np.float64).reshape(-1, 4)
    sized = np.array([each["bbox_mode"] == BoxMode.XYWH_ABS for each in annotations], dtype=bool)
    boxes[sized, 2:] += boxes[sized, :2]
    return boxes


def _label_areas(record: dict[str, Any], annotations: Sequence[dict[str, Any]]) -> np.ndarray:
    """Pixels of the objects of a label image, int64 [n]."""
    if all("area" in each for each in annotations):
        return np.array([each["area"] for each in annotations], dtype=np.int64)
    labels, areas = np.unique(read_label_map(record["label_file_name"]), return_counts=True)
    of_label = dict(zip(labels.tolist(), areas.tolist(), strict=True))
    return np.array([of_label.get(each["label_id"], 0) for each in annotations], dtype=np.int64)


def highest_ious(boxes: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Highest IoU of each box, xyxy [n, 4], with another of its class [n], float64 [n]."""
    highest = np.zeros(len(boxes))
    for rows, columns in _neighbours(boxes):
        ious = box_ious(boxes[rows, None], boxes[columns])  # [r, c]
        ious[(classes[rows, None] != classes[columns]) | (rows[:, None] == columns)] = 0
        highest[rows] = ious.max(axis=1, initial=0)
    return highest


def covered_shares(rles: Sequence[dict[str, Any]], boxes: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Share of each mask, in its box xyxy [n, 4], that the others of its class [n] cover, added up: float64 [n]."""
    shares = np.zeros(len(rles))
    for rows, columns in _neighbours(boxes):
        overlaps = np.nan_to_num(rle_overlaps([rles[k] for k in rows], [rles[k] for k in columns], of_first=True))
        overlaps[(classes[rows, None] != classes[columns]) | (rows[:, None] == columns)] = 0
        shares[rows] = overlaps.sum(axis=1)
    return shares


def _neighbours(boxes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of some boxes, xyxy [n, 4], from left to right, and of all whose columns any of them reaches."""
    order = boxes[:, 0].argsort(kind="stable")
    for first in range(0, len(boxes), _ROWS):
        rows = order[first : first + _ROWS]
        reach = (boxes[:, 0] < boxes[rows, 2].max()) & (boxes[:, 2] > boxes[rows, 0].min())
        yield rows, np.flatnonzero(reach)
