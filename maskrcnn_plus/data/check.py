"""
The data check: what is wrong with a data set, found before training instead of in the middle of it.

Works on Detectron2 dataset dicts, from label images (`label_file_name`, `label_id`) as from COCO (`segmentation`).
"""

import logging
from collections.abc import Sequence

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import filter_images_with_only_crowd_annotations, print_instances_class_histogram
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.structures import BoxMode

from maskrcnn_plus.data.images import ImageReadError, read_image, read_image_size, read_label_map
from maskrcnn_plus.errors import UserError

__all__ = ["DataError", "check_dataset", "checked_dataset", "report_problems"]

logger = logging.getLogger(__name__)

_MAX_LISTED = 20


class DataError(UserError):
    """A data set that cannot be used; the message lists files, annotations and remedies."""


def check_dataset(
    dicts: Sequence[dict], *, on_error: str = "raise", num_classes: int | None = None, decode: bool = False
) -> list[dict]:
    """
    Check every image and annotation, and collect all problems before reporting them.

    An image is bad when it or its label image is missing or unreadable, or when sizes differ. An annotation is bad when
    its box is empty, not finite or outside the image, its category is unknown, or its mask is missing or malformed.

    Args:
        dicts: Detectron2 dataset dicts; they are not changed.
        on_error: "raise", or "skip" to drop bad annotations and bad images with one warning that lists them.
        num_classes: category ids must be in 0..num_classes-1; None accepts every id that is not negative.
        decode: decode the pixels too, instead of the headers only. Slow, but finds truncated files, NaN pixels and
            label ids that do not occur in the label image.

    Returns:
        The dicts without what was dropped, as new dicts where annotations were dropped.

    Raises:
        DataError: on_error is "raise" and there are problems.
        ValueError: on_error is neither "raise" nor "skip".
    """
    problems: list[str] = []
    cleaned = []
    for index, record in enumerate(dicts):
        image_problem, size, label_ids = _check_image(record, decode)
        if image_problem is not None:
            problems.append(f"image {index}: {image_problem}")
            continue
        kept = []
        for number, annotation in enumerate(record.get("annotations", [])):
            found = _check_annotation(annotation, record, size, num_classes, label_ids)
            name = f"annotation {number}" + (f" (id {annotation['id']})" if "id" in annotation else "")
            problems.extend(f"{record['file_name']}, {name}: {problem}" for problem in found)
            if not found:
                kept.append(annotation)
        cleaned.append(record if len(kept) == len(record.get("annotations", [])) else {**record, "annotations": kept})
    report_problems(problems, on_error)
    return cleaned


def checked_dataset(
    names: str | Sequence[str], *, filter_empty: bool = True, on_error: str = "raise", decode: bool = False
) -> list[dict]:
    """
    Load registered data sets like Detectron2's `get_detection_dataset_dicts`, and check them before anything else.

    Args:
        names: name or names in Detectron2's DatasetCatalog; several data sets must have the same classes.
        filter_empty: drop images without annotations (for training).
        on_error, decode: as for `check_dataset`. The number of classes comes from the metadata of the first name.

    Returns:
        list of dataset dicts.

    Raises:
        DataError: problems were found (on_error="raise"), or no image is left.
        KeyError: a name is not registered.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise DataError("No data set is named. Set dataset.names to one or more registered data sets.")
    dicts = []
    for name in names:
        loaded = DatasetCatalog.get(name)
        if not loaded:
            raise DataError(f"Data set '{name}' has no images. Check its folder and its split.")
        dicts.extend(loaded)
    thing_classes = MetadataCatalog.get(names[0]).get("thing_classes")
    if thing_classes is not None:
        check_metadata_consistency("thing_classes", names)
    num_classes = None if thing_classes is None else len(thing_classes)
    dicts = check_dataset(dicts, on_error=on_error, num_classes=num_classes, decode=decode)
    if dicts and all("annotations" in record for record in dicts):
        if filter_empty:
            dicts = filter_images_with_only_crowd_annotations(dicts)
        if thing_classes is not None:
            print_instances_class_histogram(dicts, thing_classes)
    if not dicts:
        raise DataError(f"No usable image is left in {', '.join(names)}. Each needs at least one annotated object.")
    return dicts


def report_problems(problems: Sequence[str], on_error: str) -> None:
    """
    Raise a DataError that lists the problems, or log them as one warning.

    Args:
        problems: one line a problem; an empty list is fine.
        on_error: "raise" or "skip".
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}: use 'raise' or 'skip'.")
    if not problems:
        return
    lines = [f"  - {problem}" for problem in problems[:_MAX_LISTED]]
    if len(problems) > _MAX_LISTED:
        lines.append(f"  ... and {len(problems) - _MAX_LISTED} more")
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the data"
    if on_error == "raise":
        raise DataError("\n".join([f"{count} (repair them, or set on_error='skip' to leave them out):", *lines]))
    logger.warning("\n".join([f"{count}, left out:", *lines]))


def _check_image(record: dict, decode: bool) -> tuple[str | None, tuple[int, int], set[int] | None]:
    """Return what is wrong with the images of a record, their (height, width), and the label ids if decoded."""
    path, label_path = record.get("file_name"), record.get("label_file_name")
    if not path:
        return "no file_name in the dataset dict.", (0, 0), None
    label_ids = None
    try:
        size = label_size = read_image_size(path)
        if decode:
            read_image(path, channels=None, percentiles=(0, 100))
        if label_path is not None:
            label_size = read_image_size(label_path)
            if decode:
                label_ids = set(np.unique(read_label_map(label_path)).tolist()) - {0}
    except ImageReadError as error:
        return str(error), (0, 0), None
    problem = None
    stated = (record.get("height", size[0]), record.get("width", size[1]))
    if stated != size:
        problem = f"{path}: the annotation says {_text(stated)}, the file is {_text(size)}. Correct the annotation."
    elif label_size != size:
        problem = f"{label_path}: the label image is {_text(label_size)}, its image {path} is {_text(size)}."
    return problem, size, label_ids


def _text(size: tuple[int, int]) -> str:
    """Format (height, width)."""
    return f"{size[0]} high x {size[1]} wide"


def _check_annotation(
    annotation: dict, record: dict, size: tuple[int, int], num_classes: int | None, label_ids: set[int] | None
) -> list[str]:
    """Return every problem of one annotation of an image of size (height, width)."""
    problems = [_box_problem(annotation, size), _category_problem(annotation, num_classes)]
    label_id, segmentation = annotation.get("label_id"), annotation.get("segmentation")
    if "label_file_name" in record and label_id is not None:
        if label_ids is not None and label_id not in label_ids:
            problems.append(f"label_id {label_id} does not occur in {record['label_file_name']}.")
    elif segmentation is None or len(segmentation) == 0:
        problems.append("it has no mask (neither label_id nor segmentation).")
    else:
        problems.append(_segmentation_problem(segmentation, size))
    return [problem for problem in problems if problem is not None]


def _box_problem(annotation: dict, size: tuple[int, int]) -> str | None:
    """Return what is wrong with the box."""
    box, mode = annotation.get("bbox"), annotation.get("bbox_mode")
    numbers = isinstance(box, Sequence | np.ndarray) and all(
        isinstance(value, int | float | np.number) for value in box
    )
    if not numbers or len(box) != 4 or mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        return f"bbox {box} with bbox_mode {mode}: 4 numbers as XYXY_ABS or XYWH_ABS are needed."
    shown = f"bbox {[float(value) for value in box]} ({BoxMode(mode).name})"
    x0, y0, x1, y1 = BoxMode.convert([float(value) for value in box], BoxMode(mode), BoxMode.XYXY_ABS)
    if not np.isfinite([x0, y0, x1, y1]).all():
        return f"{shown} is not finite."
    if x1 <= x0 or y1 <= y0:
        return f"{shown} is empty: width {x1 - x0:g}, height {y1 - y0:g}."
    if x1 <= 0 or y1 <= 0 or x0 >= size[1] or y0 >= size[0]:
        return f"{shown} is outside of the image ({_text(size)})."
    return None


def _category_problem(annotation: dict, num_classes: int | None) -> str | None:
    """Return what is wrong with the category."""
    category = annotation.get("category_id")
    if not isinstance(category, int | np.integer) or category < 0:
        return f"category_id {category!r}: an integer of 0 or more is needed."
    if num_classes is not None and category >= num_classes:
        return f"category_id {category} is unknown: the data set has {num_classes} classes, 0..{num_classes - 1}."
    return None


def _segmentation_problem(segmentation: list | dict | np.ndarray, size: tuple[int, int]) -> str | None:
    """Return what is wrong with polygons, a COCO RLE or a bit mask of an image of size (height, width)."""
    if isinstance(segmentation, dict):
        if "counts" not in segmentation or tuple(segmentation.get("size", ())) != size:
            return (
                f"the RLE has size {segmentation.get('size')} and must have [height, width] = {list(size)}, and counts."
            )
        counts = segmentation["counts"]
        if isinstance(counts, list) and (sum(counts) != size[0] * size[1] or min(counts) < 0):
            return f"the counts of the RLE add up to {sum(counts)} and must be {size[0]} * {size[1]} pixels."
        return None
    if isinstance(segmentation, np.ndarray):
        return None if segmentation.shape == size else f"the bit mask is {segmentation.shape}, the image {size}."
    for number, polygon in enumerate(segmentation):
        if not isinstance(polygon, list | tuple | np.ndarray):
            return f"polygon {number} is {polygon!r}: each must be a list [x0, y0, x1, y1, ...]."
        if len(polygon) < 6 or len(polygon) % 2:
            return f"polygon {number} has {len(polygon)} numbers: an even number of at least 6 is needed."
        if not np.isfinite(np.asarray(polygon, dtype=np.float64)).all():
            return f"polygon {number} has coordinates that are not finite."
    return None
