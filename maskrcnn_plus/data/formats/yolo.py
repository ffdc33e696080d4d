"""YOLO segmentation: a text file an image, a polygon a line: class x0 y0 x1 y1 ..., as parts of width and height.

A data.yaml names classes and splits; plain folders have a classes.txt or .names, a name a line, or nothing.
"""

from __future__ import annotations

import filecmp
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.annotated import BOX, BOXES_ONLY, UNUSED_ONLY, Annotated
from maskrcnn_plus.data.formats.files import list_tree, read_text, split_of
from maskrcnn_plus.data.formats.image_finder import same_text
from maskrcnn_plus.data.formats.options import ReadOptions
from maskrcnn_plus.data.formats.shapes import NoAreaError, Shape, check_area
from maskrcnn_plus.data.formats.yolo_yaml import class_names, find_yaml, listed_images, load_yaml
from maskrcnn_plus.data.images import IMAGE_SUFFIXES

LOOKED_FOR = "a .yaml with `names` and `train`, `val` or `test`, or text files of polygons named like images"

_MARGIN = 0.01  # by which tools let polygons pass the border
_OTHERS = ("classes.txt", "train.txt", "val.txt", "test.txt", "notes.txt", "requirements.txt")


def matches(path: Path) -> bool:
    """Whether a folder, or a .yaml file, holds YOLO's labels."""
    return find_yaml(path) is not None or (path.is_dir() and _has_labels(path))


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read the data set of a folder or of a .yaml file.

    Raises:
        DataError: the classes cannot be read, or no image is found.
    """
    data = Annotated()
    yaml_file = find_yaml(path, raises=True)
    root = path if path.is_dir() else path.parent
    classes = _find_classes(root)
    if yaml_file is None:
        names, images = _number_classes(root, data) if classes is None else _class_lines(classes), {}
        if not names:
            raise DataError(f"{path} holds no YOLO data set: it needs {LOOKED_FOR}.")
    else:
        content = load_yaml(yaml_file)
        if content.get("kpt_shape"):
            raise DataError(f"{yaml_file} is of poses: its labels are boxes and key points, no outlines of objects.")
        names = class_names(content["names"], yaml_file)
        if classes is not None and (lines := _class_lines(classes)) != names:
            there, here = list(lines.values()), list(names.values())
            data.notes.append(f"{classes} names {there}; the names of {yaml_file} were taken: {here}.")
        images = listed_images(content, yaml_file, path, data)
        if not images and not data.missing:
            data.notes.append(f"{yaml_file} leads to no image: all that lie in {root} were taken.")
    if not images and not data.missing:
        images = {image: split_of(image, root) for image in list_tree(root, IMAGE_SUFFIXES)}
    if not images:
        raise DataError(f"{path}: no image was found. Put the images beside their labels, or in images/ and labels/.")
    if len(set(names.values())) < len(names):
        data.notes.append(f"classes of one name were taken as one: {', '.join(names.values())}.")
    for index in sorted(names):
        data.category(names[index])
    _add_images(images, names, root, data, yaml_file is None)
    return data


def _add_images(
    images: dict[Path, str], names: dict[int, str], root: Path, data: Annotated, tell_orphans: bool
) -> None:
    """Add the images with the shapes of their text files."""
    files = _LabelFiles(root)
    stems = Counter(same_text(image.stem) for image in {*images, *list_tree(root, IMAGE_SUFFIXES)})
    labels = {image: files.find(image, stems[same_text(image.stem)] == 1) for image in images}
    labelled = {image.name: image for image, label in labels.items() if label is not None}
    corners = []
    for image, split in images.items():
        label = labels[image]
        twin = labelled.get(image.name)
        if label is None and twin is not None and filecmp.cmp(image, twin, shallow=False):
            data.assume("images without text file that equal one with such a file, and were left out", str(image))
            continue
        if label is None:
            data.assume("images without text file, which are taken to be without objects", str(image))
        if not data.is_new(image, str(image)) or (size := data.read_size(image)) is None:
            continue
        shapes, boxes, bad = _read_label(label, size, names, data) if label is not None else ([], 0, 0)
        if (boxes or bad) and not shapes:
            data.assume(BOXES_ONLY if boxes else UNUSED_ONLY, str(image))
            continue
        corners += [len(points) for shape in shapes for points in shape.polygons]
        data.add_shapes(split, image, shapes, str(label))
    if corners and set(corners) == {4}:
        data.notes.append(
            f"all {len(corners)} objects have 4 points: they were taken as outlines. If they are rotated boxes, draw "
            "or export polygons."
        )
    used = set(labels.values())
    orphans = [file for file in files.files if file not in used]
    if tell_orphans:
        data.problems += [f"{file}: there is no image of this name. Add it, or remove the file." for file in orphans]
    elif orphans := [file for file in orphans if same_text(file.stem) not in stems]:
        data.notes.append(f"{len(orphans)} text files have no image of their name, {orphans[0]} among them.")


def _find_classes(root: Path) -> Path | None:
    files = list_tree(root, (".txt", ".names"))
    return next((file for file in files if file.name == "classes.txt" or file.suffix == ".names"), None)


def _number_classes(root: Path, data: Annotated) -> dict[int, str]:
    """Names of classes that stand nowhere: their numbers."""
    numbers = {number for file in _LabelFiles(root).files for number in _first_numbers(file)}
    if numbers:
        data.notes.append(f"no file names the classes: they are called by their numbers, 0 to {max(numbers)}.")
    return {number: str(number) for number in range(max(numbers, default=-1) + 1)}


def _first_numbers(file: Path) -> set[int]:
    """Classes of the polygons of a text file, none of one that holds other things."""
    try:
        lines = [line.split() for line in read_text(file).splitlines()]
        rows = [(words[0], [float(word) for word in words[1:]]) for words in lines if words]
    except ValueError:
        return set()
    sound = all(name.isdecimal() and len(name) < 4 and len(row) >= 4 and 0 <= min(row) <= 1 for name, row in rows)
    return {int(name) for name, _ in rows} if sound else set()


def _class_lines(file: Path) -> dict[int, str]:
    lines = read_text(file).splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    return class_names(lines, file)


class _LabelFiles:
    """The text files of a folder that may hold labels."""

    def __init__(self, root: Path) -> None:
        texts = [file for file in list_tree(root, (".txt",)) if file.name not in _OTHERS]
        self.files = [file for file in texts if not file.name.lower().startswith("readme")]
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for file in self.files:
            self._by_stem[same_text(file.stem)].append(file)

    def find(self, image: Path, is_only: bool) -> Path | None:
        """The text file of an image: in `labels` for an `images` of its path, else beside it, else with its name.

        Args:
            image: its path.
            is_only: whether no other image has its name, so that a text file of this name anywhere is its own.
        """
        parts = image.parts
        for index in reversed(range(len(parts) - 1)):
            if parts[index].lower() == "images":
                folder = "LABELS" if parts[index].isupper() else "labels"
                candidate = Path(*parts[:index], folder, *parts[index + 1 :]).with_suffix(".txt")
                if candidate.is_file():
                    return candidate
        beside = image.with_suffix(".txt")
        if beside.is_file() and beside.name not in _OTHERS:
            return beside
        others = self._by_stem.get(same_text(image.stem), [])
        return others[0] if is_only and len(others) == 1 else None


def _has_labels(root: Path) -> bool:
    """Whether a text file holds YOLO's numbers and is named like an image, or lies beside a list of classes."""
    stems = {same_text(image.stem) for image in list_tree(root, IMAGE_SUFFIXES)}
    named = _find_classes(root) is not None
    return any((named or same_text(file.stem) in stems) and _first_numbers(file) for file in _LabelFiles(root).files)


def _read_label(
    file: Path, size: tuple[int, int], names: dict[int, str], data: Annotated
) -> tuple[list[Shape], int, int]:
    """Shapes of a text file in pixels of an image of `size` (H, W), and how many boxes and bad lines were left out."""
    try:
        lines = read_text(file).splitlines()
    except DataError as error:
        data.problems.append(str(error))
        return [], 0, 1
    shapes, boxes, bad = [], 0, 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            category, points = _parse_line(line, names)
            shapes.append(Shape(names[category], place, [check_area(points * size[::-1])]))
        except NoAreaError as error:
            boxes += str(error) == BOX
            data.leave_out(str(error), place)
        except ValueError as error:
            data.problems.append(f"{place}: {error}")
            bad += 1
    return shapes, boxes, bad


def _parse_line(line: str, names: dict[int, str]) -> tuple[int, np.ndarray]:
    """Class and points [P, 2], parts of width and height."""
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        raise ValueError(f"{line[:60]!r} are not numbers: class x0 y0 x1 y1 ... is needed.") from None
    if not all(map(math.isfinite, values)):
        raise ValueError("a number is not finite.")
    category, points = values[0], values[1:]
    if category not in names:
        raise ValueError(f"class {category:g} is unknown: there are {', '.join(map(str, sorted(names)))[:80]}.")
    if len(points) in (4, 5):  # the last may be a score
        raise NoAreaError(BOX)
    if len(points) < 6 and len(points) % 2 == 0:
        raise NoAreaError(f"a polygon of {len(points) // 2} points")
    if len(points) % 2:
        raise ValueError(f"{len(points)} coordinates: a polygon needs x and y of 3 points or more.")
    if min(points) < -_MARGIN or max(points) > 1 + _MARGIN:
        raise ValueError("coordinates are not within 0..1: divide x by the width and y by the height.")
    return int(category), np.array(points).clip(0, 1).reshape(-1, 2)
