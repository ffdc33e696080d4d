"""Folders of COCO files as annotation services export them.

SPLIT/_annotations.coco.json beside the images, or annotations/*.json and images/.
"""

from __future__ import annotations

import filecmp
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_plus.data.annotations import normalize_segmentation
from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.annotated import BOX, BOXES_ONLY, Annotated
from maskrcnn_plus.data.formats.coco import Category, parse_coco
from maskrcnn_plus.data.formats.coco_attributes import select_attribute
from maskrcnn_plus.data.formats.files import WHOLE, list_tree, peek_json, read_json, split_of, walk
from maskrcnn_plus.data.formats.image_finder import IMAGE_FOLDER, LABEL_FOLDER, ImageFinder, has_size, is_file
from maskrcnn_plus.data.formats.options import ReadOptions
from maskrcnn_plus.data.formats.shapes import NoAreaError, Shape

LOOKED_FOR = 'JSON files with "images" and "categories" (COCO)'
OPTIONS = ("attribute",)

_LOOKED_UP = 100  # names by which the folder of the images is found
_SPLITS = ("train", "val", "test", WHOLE)
_IMAGES = ("images", "image", "imgs", "img")
_BESIDE_INSTANCES = re.compile(r"(captions|person_keypoints|stuff|panoptic|image_info)[_-]")  # of COCO's own download
_SEVERAL_SPLITS = "images that files of several splits annotate, and that were taken for the first of train, val, test"
_TWICE = "images that several files annotate alike, and that were taken once"


def matches(path: Path) -> bool:
    """Whether a folder, or a JSON file, is COCO's."""
    return any(_is_coco(peek_json(file)) for file in list_tree(path, (".json",)))


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read all COCO files of a folder, a split a file or folder, with classes matched by name.

    Raises:
        DataError: a file cannot be read, or two of one split annotate an image differently.
    """
    data = Annotated()
    root = path if path.is_dir() else path.parent
    finder = ImageFinder(root, data)
    files = list_tree(path, (".json",))
    if any(file.name.startswith("instances") for file in files):
        files = [file for file in files if not _BESIDE_INSTANCES.match(file.name)]
    files.sort(key=lambda file: _SPLITS.index(_split(file, root)))
    for file, content in data.contents(path, (".json",), read_json, _is_coco, LOOKED_FOR, files=files):
        content = select_attribute(content, options.attribute, str(file), data)
        notes: list[str] = []
        problems: list[str] = []
        coco = parse_coco(content, str(file), str(_image_root(file, root, content)), notes, problems)
        data.notes += [f"{file}: {note}" for note in notes]
        data.problems += [f"{file}, {problem}" for problem in problems]
        _add_classes(coco.categories, content, file, data)
        for record in coco.records:
            _add_record(record, coco.categories, file, _split(file, root), finder, data)
    return data


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "categories"))


def _add_classes(categories: list[Category], content: dict[str, Any], file: Path, data: Annotated) -> None:
    names = Counter(category.name for category in categories)
    parents = {str(each.get("supercategory")) for each in content["categories"]}
    for category in categories:
        if category.count == 0 and category.name in parents and names[category.name] == 1:
            data.notes.append(f"{file}: {category.name!r} is a group of classes without objects, and no class.")
        else:
            data.category(category.name)
    for name in (name for name, count in names.items() if count > 1):
        data.notes.append(f"{file}: {names[name]} categories are named {name!r} and were taken as one.")


def _add_record(
    record: dict[str, Any], categories: list[Category], file: Path, split: str, finder: ImageFinder, data: Annotated
) -> None:
    """Add an image as it stands in the file, or in the pixels of its image where that has another size."""
    path = Path(record["file_name"])
    stated = _stated_size(record)
    image = path if path.is_file() else finder.find(record["file_name"], file, size=stated)
    if image is None:
        return
    if data.has_image(image):
        _compare(image, record, file, split, data)
        return
    size = data.read_size(image)
    if size is None or data.drawn_size(image, stated, str(file)) is None:
        return
    entries, boxes = [], 0
    for number, entry in enumerate(record["annotations"]):
        place = f"{file}, annotation {entry.get('id', f'number {number}')} of {image.name}"
        entry["category_id"] = data.category(categories[entry["category_id"]].name)
        try:
            entries.append((place, _with_mask(entry)))
        except NoAreaError as error:
            boxes += str(error) == BOX
            data.leave_out(str(error), place)
    if boxes and not entries:
        data.assume(BOXES_ONLY, str(image))
        return
    if stated == size:
        data.is_new(image, str(file))
        data.note_orientation(image)
        annotations = [entry for _, entry in entries]
        data.splits[split].append({**record, "file_name": str(image), "annotations": annotations})
        return

    def as_shape(item: tuple[str, dict[str, Any]], _: str) -> Shape:
        place, entry = item
        mask = normalize_segmentation(entry["segmentation"], stated or size)[0]
        shape = Shape(data.class_names[entry["category_id"]], place, is_crowd=bool(entry.get("iscrowd", 0)))
        if isinstance(mask, dict):
            shape.rle = mask
        else:
            shape.polygons = [np.asarray(polygon).reshape(-1, 2) for polygon in mask]
        return shape

    where, count = f"{file}, {image.name}", len(data.splits[split])
    data.add_shapes(split, image, data.read_shapes(entries, where, as_shape), where, stated)
    if len(data.splits[split]) > count:  # else another file may be of this image
        data.is_new(image, str(file))


def _stated_size(image: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) that a file states of an image."""
    height, width = image.get("height"), image.get("width")
    return (height, width) if all(isinstance(side, int) and side > 0 for side in (height, width)) else None


def _compare(image: Path, record: dict[str, Any], file: Path, split: str, data: Annotated) -> None:
    """Say why an image that another file annotates too is not taken again.

    Raises:
        DataError: the other file is of the same split and says something else.
    """
    same = [each for each in data.splits.get(split, ()) if Path(each["file_name"]) == image]
    masks = [entry.get("segmentation") for entry in record["annotations"]]
    if not masks or (same and [entry.get("segmentation") for entry in same[0]["annotations"]] == masks):
        data.assume(_TWICE, str(image))
    elif same:
        raise DataError(
            f"{image} is annotated twice, in {file} and in another file, with other objects. Give one of the files in "
            "place of the folder, or move it away."
        )
    else:
        data.assume(_SEVERAL_SPLITS, str(image))


def _with_mask(entry: dict[str, Any]) -> dict[str, Any]:
    """An annotation without parts of one or two points, and without an empty box, which are slips.

    Raises:
        NoAreaError: nothing is left, or it has a box alone.
    """
    mask = entry.get("segmentation")
    if not mask:
        raise NoAreaError(BOX if entry.get("bbox") else "an annotation of nothing")
    box = entry.get("bbox")
    if (
        isinstance(box, list)
        and all(isinstance(value, int | float) for value in box)
        and not min(box[2:], default=1) > 0
    ):
        entry = {key: value for key, value in entry.items() if key != "bbox"}
    if isinstance(mask, list) and all(isinstance(part, list) for part in mask):
        numbers = [part for part in mask if all(isinstance(value, int | float) for value in part)]
        if len(numbers) == len(mask):
            parts = [part for part in mask if len(part) >= 6]
            if not parts:
                count = max(map(len, mask)) // 2
                raise NoAreaError(BOX if not count and entry.get("bbox") else f"a polygon of {count} points")
            return {**entry, "segmentation": parts}
    return entry


def _split(file: Path, root: Path) -> str:
    """Split by the folder, else by a word of the file's name: instances_train2017.json."""
    split = split_of(file, root)
    return split_of(Path(file.stem, "x"), Path()) if split == WHOLE else split


def _image_root(file: Path, root: Path, content: dict[str, Any]) -> Path:
    """The folder that names of images are below: that of the file, or another one of the data set.

    It holds most of the images by their whole names, else, where these are of one folder of another machine, by their
    last parts; of several such folders, most in the sizes that the file states. Where nothing tells which of them it
    is, and their files differ, it is that of the file, so that each image is looked for by itself.
    """
    images = [image for image in content["images"] if isinstance(image, dict)]
    images = images[:: max(1, len(images) // _LOOKED_UP)]
    names = [str(image.get("file_name", "")).replace("\\", "/") for image in images]
    folders = list(dict.fromkeys([file.parent, root, *sorted(Path(each) for each, _, _ in walk(root))]))
    words, split = _words(file.stem), _split(file, root)

    def rank(folder: Path) -> tuple[int, ...]:
        """Less for what is nearer: the file's own place, its split, what is called like it, folders of images."""
        near = folder != file.parent, not folder.is_relative_to(file.parent), split_of(folder / "x", root) != split
        below = folder.relative_to(root).parts if folder.is_relative_to(root) else ()
        likeness = len(words & set().union(*map(_words, below)))
        kinds = folder.name.lower() not in _IMAGES, not IMAGE_FOLDER.search(folder.name)
        return *near, -likeness, bool(LABEL_FOLDER.search(folder.name)), *kinds

    attempts, above = [names], {name.rpartition("/")[0] for name in names}
    if len(above) == 1 and above != {""}:
        attempts.append([name.rpartition("/")[2] for name in names])
    for parts in attempts:
        there = {folder: {part for part in parts if part and is_file(folder / part)} for folder in folders}
        most = max(map(len, there.values()))
        if most:
            folders = [folder for folder in folders if len(there[folder]) == most]
            if len(folders) > 1:
                sizes = {part: _stated_size(image) for part, image in zip(parts, images, strict=True)}
                fitting = [sum(has_size(folder / part, sizes[part]) for part in there[folder]) for folder in folders]
                folders = [folder for folder, count in zip(folders, fitting, strict=True) if count == max(fitting)]
            best, *others = sorted(folders, key=rank)
            others = [each for each in others if rank(each) == rank(best)]
            pairs = [(best / part, each / part) for each in others for part in sorted(there[best] & there[each])]
            return file.parent if any(not filecmp.cmp(*pair, shallow=False) for pair in pairs) else best
    return file.parent


def _words(name: str) -> set[str]:
    """The words and numbers of a name."""
    return set(re.findall(r"[^\W\d_]+|\d+", name.lower()))
