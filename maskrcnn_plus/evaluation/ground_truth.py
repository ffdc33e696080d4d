"""Ground truth of a Detectron2 data set as COCO RLEs, from label images, polygons or RLEs.

Shape shorthand: N annotations of an image of H x W pixels.
"""

from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog

from maskrcnn_plus.data.annotations import normalize_segmentation
from maskrcnn_plus.data.check import checked_dicts
from maskrcnn_plus.data.images import read_label_map
from maskrcnn_plus.masks.label_map import label_map_to_rles
from maskrcnn_plus.masks.measure import rle_areas
from maskrcnn_plus.masks.polygons import polygons_to_rle


def load_ground_truth(dataset_name: str, on_error: str | None = None) -> dict[Any, dict[str, Any]]:
    """Read a registered data set for evaluation.

    Args:
        dataset_name: its name in Detectron2's DatasetCatalog.
        on_error: "raise" or "skip" to check the data set as `checked_dataset` does, so that what a loader leaves out is
            not missed here; None takes it as it is.

    Returns:
        The data set's dicts by `image_id`, in the data set's order.

    Raises:
        KeyError: no data set of that name (from DatasetCatalog).
        DataError: problems were found (on_error="raise").
        ValueError: no images, an image without id or size, or an image id that stands for two images.
    """
    by_image_id: dict[Any, dict[str, Any]] = {}
    checked = on_error is not None
    for entry in checked_dicts(dataset_name, on_error=on_error) if checked else DatasetCatalog.get(dataset_name):
        for key in ("image_id", "height", "width"):
            if key not in entry:
                raise ValueError(f"Data set {dataset_name!r}: {image_name(entry)} has no {key!r}.")
        if entry["image_id"] in by_image_id:
            raise ValueError(
                f"Data set {dataset_name!r}: image id {entry['image_id']!r} stands for two images: "
                f"{image_name(by_image_id[entry['image_id']])} and {image_name(entry)}. Give each an id of its own."
            )
        by_image_id[entry["image_id"]] = entry
    if not by_image_id:
        raise ValueError(f"Data set {dataset_name!r} has no images to evaluate on.")
    return by_image_id


def image_name(dataset_dict: dict[str, Any]) -> str:
    """Name an image for an error message: its file, and its id where there is one."""
    name = str(dataset_dict.get("file_name", "an image without file_name"))
    return f"{name} (image id {dataset_dict['image_id']!r})" if "image_id" in dataset_dict else name


def ground_truth_rles(dataset_dict: dict[str, Any]) -> list[dict[str, Any]]:
    """Encode the ground-truth masks of one image.

    Args:
        dataset_dict: an entry of a Detectron2 data set: "height", "width" and "annotations", each of which has either
            "label_id" (its value in the label image "label_file_name") or "segmentation" (polygons as
            [[x0, y0, x1, y1, ...], ...] in pixels, or an RLE). Crowd annotations are encoded like all others.

    Returns:
        One RLE an annotation, in their order, all of size [H, W] with `counts` as str.

    Raises:
        ValueError: naming image and annotation, where a mask is missing or malformed.
    """
    annotations = dataset_dict.get("annotations", [])
    height, width = dataset_dict["height"], dataset_dict["width"]
    label_ids = {int(annotation["label_id"]) for annotation in annotations if "label_id" in annotation}
    objects = sorted(label_id for label_id in label_ids if label_id > 0)
    of_label = (
        dict(zip(objects, label_map_to_rles(_get_label_map(dataset_dict), objects), strict=True)) if label_ids else {}
    )
    rles = []
    for index, annotation in enumerate(annotations):
        try:
            if "label_id" in annotation:
                rle = of_label.get(int(annotation["label_id"]))
                if rle is None or not rle_areas([rle])[0]:
                    raise ValueError(
                        f"label_id {annotation['label_id']} is no object of {dataset_dict['label_file_name']}."
                    )
            else:
                rle, _ = normalize_segmentation(annotation.get("segmentation"), (height, width))
                rle = rle if isinstance(rle, dict) else polygons_to_rle(rle, height, width)
        except ValueError as error:
            raise ValueError(f"{image_name(dataset_dict)}, annotation {index}: {error}") from error
        rles.append(rle)
    return rles


def _get_label_map(dataset_dict: dict[str, Any]) -> np.ndarray:
    """Read the label image [H, W] of an entry and check its size."""
    path = dataset_dict.get("label_file_name")
    if path is None:
        raise ValueError(
            f'{image_name(dataset_dict)}: annotations have "label_id" but the image has no "label_file_name".'
        )
    label_map = read_label_map(path)
    height, width = dataset_dict["height"], dataset_dict["width"]
    if label_map.shape != (height, width):
        raise ValueError(
            f"{path} has {label_map.shape[0]} x {label_map.shape[1]} pixels (height x width), "
            f"but its image {image_name(dataset_dict)} has {height} x {width}."
        )
    return label_map
