"""The masks and boxes of an image's annotations, moved with the image by its augmentations.

Shape shorthand: [H, W] image as read, [h, w] image after the augmentations, N instances.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import detection_utils
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from fvcore.transforms.transform import (
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    Transform,
    TransformList,
    VFlipTransform,
)

from maskrcnn_plus.data.annotations import box_corners, has_mask, normalize_segmentation, read_box
from maskrcnn_plus.data.augmentation import CropResizeTransform, Rotate90Transform
from maskrcnn_plus.data.images import read_label_map
from maskrcnn_plus.data.intensity import IntensityTransform
from maskrcnn_plus.masks.label_masks import LabelMapMasks
from maskrcnn_plus.masks.polygons import clip_polygon
from maskrcnn_plus.rle import decode_runs, ranges

# These move whole pixels or leave them alone, in any dtype. Others may know uint8 and floats only.
_TAKE_INTEGERS = (
    CropResizeTransform,
    Rotate90Transform,
    IntensityTransform,
    HFlipTransform,
    VFlipTransform,
    CropTransform,
    NoOpTransform,
)


def transform_label_map(
    label_name: str,
    name: str,
    annotations: list[tuple[str, dict[str, Any]]],
    size: tuple[int, int],
    transforms: TransformList,
    out_size: tuple[int, int],
) -> LabelMapMasks:
    """Read and transform the label image once for all annotations."""
    for where, annotation in annotations:
        if not annotation.get("label_id"):
            raise ValueError(
                f"{where} needs the key 'label_id', its value in {label_name} and not 0 (the background), "
                f"got {annotation.get('label_id')!r}."
            )
    label_map = read_label_map(label_name)
    if label_map.shape != size:
        raise ValueError(
            f"{name} is {size[1]}x{size[0]} pixels but its label image {label_name} is "
            f"{label_map.shape[1]}x{label_map.shape[0]}: give both the same size."
        )
    label_ids = [annotation["label_id"] for _, annotation in annotations]
    return _move_labels(label_map, label_ids, (name, label_name), transforms, out_size)


def transform_disjoint(
    annotations: list[tuple[str, dict[str, Any]]],
    name: str,
    size: tuple[int, int],
    transforms: TransformList,
    out_size: tuple[int, int],
) -> LabelMapMasks | None:
    """The masks of annotations as one label image, if they are RLEs that do not overlap; else None.

    It is transformed once for all of them, where `transform_segmentations` decodes and transforms each on its own.
    """
    rles = [annotation.get("segmentation") for _, annotation in annotations]
    if not rles or not all(isinstance(rle, dict) and tuple(rle.get("size", ())) == size for rle in rles):
        return None
    try:
        runs = decode_runs(rles)
    except ValueError:  # which `transform_segmentations` tells with the annotation
        return None
    pixels, run = ranges(runs.starts, runs.ends)
    label_map = np.zeros((size[1], size[0]), dtype=np.int32)  # [W, H], as runs go down the columns
    label_map.ravel()[pixels] = runs.owners[run] + 1
    if np.count_nonzero(label_map) != len(pixels):
        return None
    label_map = np.ascontiguousarray(label_map.T)  # [H, W]
    return _move_labels(label_map, range(1, len(rles) + 1), (name, f"the masks of {name}"), transforms, out_size)


def _move_labels(
    label_map: np.ndarray,
    label_ids: Sequence[int],
    names: tuple[str, str],
    transforms: TransformList,
    out_size: tuple[int, int],
) -> LabelMapMasks:
    """Transform a label image; `names` are those of its image and of itself."""
    for transform in transforms.transforms:
        label_map = _transform_labels(label_map, transform, names[1])
    if label_map.shape != out_size:
        raise ValueError(f"The augmentations give {names[0]} the size {out_size} but {names[1]} {label_map.shape}.")
    label_ids = torch.tensor(label_ids, dtype=torch.int64)
    return LabelMapMasks(torch.from_numpy(np.ascontiguousarray(label_map)), label_ids)


def _transform_labels(label_map: np.ndarray, transform: Transform, label_name: str) -> np.ndarray:
    """Apply one transform to an int32 label image [H, W] without losing labels."""
    if isinstance(transform, _TAKE_INTEGERS):
        return transform.apply_segmentation(label_map)
    if label_map.max(initial=0) >= 2**24:
        raise ValueError(
            f"{label_name} holds labels of 2**24 and more, which {transform} cannot carry: renumber its labels."
        )
    transformed = transform.apply_segmentation(label_map.astype(np.float32))
    labels = np.rint(transformed).astype(np.int32)
    if not np.array_equal(labels, transformed):
        raise ValueError(f"{transform} mixes the labels of {label_name}: its apply_segmentation must not interpolate.")
    return labels


def transform_box(
    where: str,
    annotation: dict[str, Any],
    size: tuple[int, int],
    transforms: TransformList,
    out_size: tuple[int, int],
) -> list[float]:
    """Return the box of an annotation in the augmented image, xyxy and clipped to it."""
    if "bbox" not in annotation or "bbox_mode" not in annotation:
        raise ValueError(f"{where} needs the keys 'bbox' and 'bbox_mode'.")
    try:
        corners = box_corners(read_box(annotation)[0], annotation["bbox_mode"], size)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    box = {"bbox": corners, "bbox_mode": BoxMode.XYXY_ABS}
    return detection_utils.transform_instance_annotations(box, transforms, out_size)["bbox"].tolist()


def transform_segmentations(
    annotations: list[tuple[str, dict[str, Any]]],
    size: tuple[int, int],
    transforms: TransformList,
    out_size: tuple[int, int],
) -> PolygonMasks | BitMasks:
    """Return the masks of COCO annotations, cut to the augmented image: polygons unless an annotation has an RLE."""
    transformed = []
    for where, annotation in annotations:
        segmentation = _read_segmentation(where, annotation, size)
        moved = {"bbox": [0, 0, 0, 0], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "segmentation": segmentation}
        moved = detection_utils.transform_instance_annotations(moved, transforms, out_size)
        if isinstance(segmentation, list):
            polygons = [clip_polygon(p.reshape(-1, 2), out_size[1], out_size[0]) for p in moved["segmentation"]]
            moved["segmentation"] = [polygon.reshape(-1) for polygon in polygons if len(polygon)]
        transformed.append(moved)
    if not transformed:
        return PolygonMasks([])
    only_polygons = all(isinstance(moved["segmentation"], list) for moved in transformed)
    mask_format = "polygon" if only_polygons else "bitmask"
    return detection_utils.annotations_to_instances(transformed, out_size, mask_format=mask_format).gt_masks


def _read_segmentation(
    where: str, annotation: dict[str, Any], size: tuple[int, int]
) -> list[np.ndarray] | dict[str, Any]:
    """Return polygons as copies, which transforms may change in place, or a compressed RLE of the image's size."""
    if not has_mask(annotation):
        raise ValueError(f"{where} needs a 'segmentation' (polygons or RLE); train with use_masks=False without masks.")
    try:
        segmentation, _ = normalize_segmentation(annotation["segmentation"], size)
    except ValueError as error:
        raise ValueError(f"{where} has a mask that cannot be used: {error}") from error
    return segmentation if isinstance(segmentation, dict) else [np.array(each) for each in segmentation]
