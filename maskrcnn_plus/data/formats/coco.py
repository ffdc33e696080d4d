"""COCO files as they are found: read, understood where a person could, refused by name where not.

What COCO asks for (cocodataset.org, "Data format"): {"images": [...], "annotations": [...], "categories": [...]}, an
integer id an image, a category and an annotation. Tools write ids as text, repeat entries, leave out sizes or
`iscrowd`, and put folders before file names.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from typing import Any, NamedTuple

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from maskrcnn_plus.data.check import DataError, report_problems
from maskrcnn_plus.data.formats.coco_ids import canonical_id, id_order
from maskrcnn_plus.data.formats.coco_images import read_images
from maskrcnn_plus.data.formats.crowds import find_crowds, is_true
from maskrcnn_plus.errors import printable
from maskrcnn_plus.special_files import refuse_special_file

logger = logging.getLogger(__name__)

_KEPT = ("id", "iscrowd", "bbox", "keypoints", "category_id")
_SHOWN = 8
_said: set[str] = set()


class Category(NamedTuple):
    """A category of a COCO file.

    Attributes:
        id: as it stands in the file.
        name: of the class.
        count: how many annotations have it.
    """

    id: int | float | str
    name: str
    count: int


class CocoData(NamedTuple):
    """The content of a COCO file.

    Attributes:
        categories: in the order of their ids.
        records: Detectron2 dataset dicts in the order of the images' ids. The `category_id` of an annotation is its
            index in `categories`.
    """

    categories: list[Category]
    records: list[dict[str, Any]]


def read_categories(json_file: str) -> list[Category]:
    """The categories of a COCO file, with the numbers of their annotations.

    Raises:
        DataError: naming the file, when it is no COCO file or its categories cannot be told apart.
    """
    return _categories(_check_lists(_load(json_file), json_file, []), json_file)[0]


def read_coco(json_file: str, image_root: str, on_error: str = "raise") -> CocoData:
    """Read a COCO file.

    `segmentation`, `bbox` and the ids of images, categories and annotations stay as they stand in the file; whether
    masks and boxes make sense is for the check. Sizes that are missing come from the headers of the images. What had to
    be assumed is said in a warning.

    Args:
        json_file: the file, or an address that Detectron2's PathManager knows.
        image_root: folder that the `file_name`s are relative to.
        on_error: what an image or an annotation does that cannot be used: "raise", or "skip" it, named in a warning.

    Raises:
        DataError: naming the file, and the images, categories or annotations that are wrong.
    """
    notes: list[str] = []
    problems: list[str] = []
    data = parse_coco(_load(json_file), json_file, image_root, notes, problems)
    report_problems([f"{json_file}, {problem}" for problem in problems], on_error)
    if notes:
        warn_once(f"{json_file}: " + "\n  ".join(["what was assumed:", *notes] if len(notes) > 1 else notes))
    return data


def parse_coco(content: Any, json_file: str, image_root: str, notes: list[str], problems: list[str]) -> CocoData:
    """What `read_coco` makes of the content of a file.

    Args:
        content: of the file; its list of annotations may be added.
        json_file: named in errors.
        image_root: folder that the `file_name`s are relative to.
        notes: what had to be assumed is added here.
        problems: images and annotations that cannot be used are added here.

    Raises:
        DataError: naming the file that is no COCO file, or whose images or categories cannot be told apart.
    """
    content = _check_lists(content, json_file, notes)
    categories, indices = _categories(content, json_file)
    records = read_images(content["images"], image_root, json_file, notes, problems)
    _add_annotations(content["annotations"], records, categories, indices, notes, problems)
    ordered = {id(record): record for _, record in sorted(records.items(), key=lambda item: id_order(item[0]))}
    return CocoData(categories, list(ordered.values()))


def _load(json_file: str) -> Any:
    """Content of a JSON file, or of an address."""
    try:
        refuse_special_file(json_file)
        with PathManager.open(json_file, "rb") as file:
            return json.loads(file.read())  # UTF-8, -16 or -32, with or without a byte order mark
    except FileNotFoundError:
        raise DataError(f"{json_file} does not exist.") from None
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{json_file} is no valid COCO file: it cannot be read as JSON ({error}).") from error


def _check_lists(content: Any, json_file: str, notes: list[str]) -> dict[str, Any]:
    """The content as a dict with the three lists."""
    needed = 'A COCO file holds {"images": [...], "annotations": [...], "categories": [...]}.'
    if isinstance(content, list):
        raise DataError(
            f"{json_file} is a list, as files of results (predictions) are, not a data set. {needed} Give the file "
            "that has the images and categories."
        )
    if not isinstance(content, dict):
        raise DataError(f"{json_file} is no valid COCO file: it holds a {type(content).__name__}. {needed}")
    found = ", ".join(map(repr, list(content)[:_SHOWN])) or "nothing"
    if isinstance(content.get("annotations"), dict):  # by their ids, as in LIVECell's files of single cell types
        content["annotations"] = [*content["annotations"].values()]
    if content.get("annotations") is None and "images" in content and "categories" in content:
        notes.append("it has no annotations: its images are taken to be without objects.")
        content["annotations"] = []
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            what = f"no {key!r}" if key not in content else f"a {type(content[key]).__name__} as {key!r}, not a list"
            raise DataError(f"{json_file} is no valid COCO file: it has {what}. {needed} This one holds {found}.")
    if not content["images"]:
        raise DataError(f'{json_file} has no images: its list "images" is empty.')
    return content


def _categories(content: dict[str, Any], json_file: str) -> tuple[list[Category], dict[Any, int]]:
    """The categories in the order of their ids, and canonical id -> index of the category."""
    names: dict[Any, Any] = {}
    own: dict[Any, Any] = {}
    for number, category in enumerate(content["categories"]):
        key = canonical_id(category.get("id")) if isinstance(category, dict) else None
        name = category.get("name") if key is not None else None
        name = printable(name) if isinstance(name, str) else name
        if name is None or not str(name).strip():
            raise DataError(
                f"{json_file}: categories[{number}] is {str(category)[:80]}, but a category needs an id and a name: "
                '{"id": 1, "name": "cell"}.'
            )
        if key in names and names[key] != str(name):
            raise DataError(
                f"{json_file}: the category id {category['id']!r} stands for {names[key]!r} and for {str(name)!r}. "
                "Give each category an id of its own, and its annotations that id."
            )
        names[key] = str(name)
        own.setdefault(key, category["id"])
    annotations = (entry for entry in content["annotations"] if isinstance(entry, dict))
    only = next(iter(names)) if len(names) == 1 else None
    counts = Counter(only if (i := entry.get("category_id")) is None else canonical_id(i) for entry in annotations)
    keys = sorted(names, key=id_order)
    return [Category(own[key], names[key], counts[key]) for key in keys], {key: i for i, key in enumerate(keys)}


def _add_annotations(
    annotations: list[Any],
    records: dict[Any, dict[str, Any]],
    categories: list[Category],
    indices: dict[Any, int],
    notes: list[str],
    problems: list[str],
) -> None:
    """Put the annotations into the dicts of their images, with the index of their category."""
    objects, ignored = [], []
    count: Counter[str] = Counter()
    shared = len({id(record) for record in records.values()}) < len(records)
    for number, annotation in enumerate(annotations):
        if not isinstance(annotation, dict):
            problems.append(f"annotations[{number}] is {str(annotation)[:80]}, not an object with keys.")
            continue
        where = f"annotation {annotation['id']!r}" if "id" in annotation else f"annotations[{number}]"
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        record = records.get(canonical_id(image_id))
        index = indices.get(canonical_id(category_id))
        if record is None:
            problems.append(f"{where}: image_id {image_id!r} is the id of no usable image in the file.")
            continue
        where = f"{where} of {record['file_name']}"
        if category_id is None and len(categories) == 1:
            index = 0
            count["no category"] += 1
        if index is None:
            problems.append(f"{where}: category_id {category_id!r} is the id of no category in the file.")
            continue
        count["text"] += isinstance(image_id, str) != isinstance(record["image_id"], str)
        count["text"] += category_id is not None and isinstance(category_id, str) != isinstance(
            categories[index].id, str
        )
        entry = {key: annotation[key] for key in _KEPT if key in annotation}
        entry.update(category_id=index, bbox_mode=BoxMode.XYWH_ABS)
        if annotation.get("segmentation"):
            entry["segmentation"] = annotation["segmentation"]
        if isinstance(points := entry.pop("keypoints", None), list) and points:
            # The centres of pixels, as Detectron2 has them; every third number is the visibility.
            entry["keypoints"] = [value if k % 3 == 2 else value + 0.5 for k, value in enumerate(points)]
        try:
            is_ignored = is_true(annotation.get("ignore", 0))
            if "iscrowd" in entry:
                count["crowd as text"] += type(entry["iscrowd"]) is not int
                entry["iscrowd"] = int(is_true(entry["iscrowd"]))
        except ValueError as error:
            problems.append(f"{where}: iscrowd or ignore is {error}: 0 or 1 is needed.")
            continue
        if shared and any(_same(entry, other) for other in record["annotations"]):
            continue
        record["annotations"].append(entry)
        (ignored if is_ignored else objects).append(entry)
    if count["no category"]:
        notes.append(f"{count['no category']} annotations have no category_id and got the only one.")
    if count["text"]:
        notes.append(f"{count['text']} ids are text in one place and numbers in another; they were taken as equal.")
    if count["crowd as text"]:
        notes.append(f"iscrowd is no number 0 or 1 in {count['crowd as text']} annotations, but was understood.")
    find_crowds(objects, ignored, [category.name for category in categories], notes)


def warn_once(text: str) -> None:
    """Say something of a file once, as a data set is read for its loader and for each evaluator."""
    if text not in _said:
        _said.add(text)
        logger.warning(text)


def _same(entry: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two annotations are one but for their ids."""
    return {**entry, "id": None} == {**other, "id": None}
