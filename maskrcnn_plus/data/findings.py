"""What is wrong with the images and annotations of a data set, as data: `data/check.py` says and heeds it.

Shape shorthand: sizes are (height, width) of an image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskrcnn_plus.data.annotations import NORMALIZED, OTHER_BOX, box_corners, normalize_annotation, read_box
from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.images import ImageReadError, read_image, read_image_size, read_label_map
from maskrcnn_plus.data.patterns import box_pattern, scale_pattern
from maskrcnn_plus.data.screening import screen


def find_problems(
    dicts: Sequence[dict], num_classes: int | None = None, decode: bool = False, rule: ChannelRule | None = None
) -> dict[str, Any]:
    """Look at every image and annotation.

    Args:
        dicts, num_classes, decode, rule: as for `check_dataset`.

    Returns:
        Findings as data for JSON: `problems` (lines), `causes` (what they have in common, sentences), `notes` (what
        was understood: names of annotations by kind), `bad_images` (indices), and `changes` ({index of image: {number
        of annotation: new values, or None for a bad one}}, keys as text).
    """
    findings: dict[str, Any] = {"problems": [], "causes": [], "notes": {}, "bad_images": [], "changes": {}}
    problems: list[tuple[int, str]] = []
    places, entries, label_ids = [], [], {}
    for index, record in enumerate(dicts):
        problem, size, label_ids[index] = _check_image(record, decode, rule)
        if problem is not None:
            problems.append((index, f"image {index}: {problem}"))
            findings["bad_images"].append(index)
            continue
        labelled = "label_file_name" in record
        for number, annotation in enumerate(record.get("annotations", [])):
            places.append((index, number))
            entries.append((annotation, size, labelled and annotation.get("label_id") is not None))
    passed, extents = screen(entries)
    passed &= np.array([_category_problem(annotation, num_classes) is None for annotation, _, _ in entries], dtype=bool)
    decoded = {index for index, found in label_ids.items() if found is not None}
    normalized, other_boxes = 0, []
    for passes, (index, number), (annotation, size, labelled) in zip(passed, places, entries, strict=True):
        if passes and index not in decoded:
            continue
        found, changes, notes = _check_annotation(
            annotation, dicts[index], size, labelled, num_classes, label_ids.get(index)
        )
        name = f"{dicts[index].get('file_name')}, {annotation_name(number, annotation)}"
        problems.extend((index, f"{name}: {problem}") for problem in found)
        normalized += NORMALIZED in found
        if found or changes:
            findings["changes"].setdefault(str(index), {})[str(number)] = None if found else changes
        if not found:
            for note in notes:
                findings["notes"].setdefault(note, []).append(name)
            if OTHER_BOX in notes:
                other_boxes.append((annotation, size))
    findings["problems"] = [text for _, text in sorted(problems, key=lambda problem: problem[0])]
    findings["causes"] = _causes(entries, places, extents, normalized, other_boxes)
    return findings


def _check_image(
    record: dict, decode: bool, rule: ChannelRule | None
) -> tuple[str | None, tuple[int, int], set[int] | None]:
    """Return what is wrong with the images of a record, their (height, width), and the label ids if decoded."""
    path, label_path = record.get("file_name"), record.get("label_file_name")
    if not path:
        return "no file_name in the dataset dict.", (0, 0), None
    label_ids = None
    try:
        size = label_size = read_image_size(path, rule)
        if decode:
            read_image(path, rule, percentiles=(0, 100))
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
        if all(isinstance(side, int) and side > 0 for side in stated) and stated != size[::-1]:
            factors = stated[0] / size[0], stated[1] / size[1]
            if abs(factors[0] / factors[1] - 1) < 0.02:
                problem += f" The image may have been resized after it was annotated, by {1 / factors[0]:.3g}."
    elif label_size != size:
        problem = f"{label_path}: the label image is {_text(label_size)}, its image {path} is {_text(size)}."
    return problem, size, label_ids


def _text(size: tuple[int, int]) -> str:
    """Format (height, width)."""
    return f"{size[0]} high x {size[1]} wide"


def annotation_name(number: int, annotation: dict) -> str:
    """Number of an annotation in its image, and its id."""
    return f"annotation {number}" + (f" (id {annotation['id']})" if "id" in annotation else "")


def _check_annotation(
    annotation: dict,
    record: dict,
    size: tuple[int, int],
    labelled: bool,
    num_classes: int | None,
    label_ids: set[int] | None,
) -> tuple[list[str], dict[str, Any], list[str]]:
    """Return problems, changes and notes of one annotation of an image of size (height, width)."""
    problems, changes, notes = [], {}, []
    try:
        if labelled:
            box_corners(read_box(annotation)[0], annotation.get("bbox_mode"), size)
        else:
            changes, notes = normalize_annotation(annotation, size)
    except ValueError as error:
        problems.append(str(error))
    category = _category_problem(annotation, num_classes)
    if category is not None:
        problems.append(category)
    if labelled and label_ids is not None and annotation["label_id"] not in label_ids:
        problems.append(f"label_id {annotation['label_id']} does not occur in {record['label_file_name']}.")
    return problems, changes, notes


def _causes(
    entries: Sequence[tuple[dict, tuple[int, int], bool]],
    places: Sequence[tuple[int, int]],
    extents: np.ndarray,
    normalized: int,
    other_boxes: list[tuple[dict, tuple[int, int]]],
) -> list[str]:
    """Return what the annotations have in common, as sentences."""
    if not entries:
        return []
    causes = []
    if normalized > len(entries) / 2:
        causes.append(f"the coordinates of {normalized} of {len(entries)} masks are parts of the image's size.")
    else:
        limits = np.array([[size[1], size[0]] for _, size, _ in entries], dtype=np.float64)
        causes.append(scale_pattern(extents, limits, np.array([index for index, _ in places])))
    if other_boxes:
        causes.append(box_pattern(other_boxes, len(entries)))
    return [cause for cause in causes if cause is not None]


def _category_problem(annotation: dict, num_classes: int | None) -> str | None:
    """Return what is wrong with the category."""
    category = annotation.get("category_id")
    if not isinstance(category, int | np.integer) or category < 0:
        return f"category_id {category!r}: an integer of 0 or more is needed."
    if num_classes is not None and category >= num_classes:
        return f"category_id {category} is unknown: the data set has {num_classes} classes, 0..{num_classes - 1}."
    return None
