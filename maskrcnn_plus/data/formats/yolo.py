"""YOLO segmentation: a text file an image, a polygon a line: class x0 y0 x1 y1 ..., as parts of width and height.

A data.yaml names classes and splits; plain folders have a classes.txt, a name a line.
"""

from __future__ import annotations

import math
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.annotated import Annotated, polygon_annotation
from maskrcnn_plus.data.formats.files import list_tree, split_of
from maskrcnn_plus.data.formats.options import ReadOptions
from maskrcnn_plus.data.images import IMAGE_SUFFIXES

LOOKED_FOR = "a .yaml with `names` and `train`, `val` or `test`, or a classes.txt beside text files of numbers"

_SPLIT_KEYS = {"train": "train", "val": "val", "valid": "val", "test": "test"}
_MARGIN = 0.01  # by which tools let polygons pass the border


def matches(path: Path) -> bool:
    """Whether a folder, or a .yaml file, holds YOLO's labels."""
    return _find_yaml(path) is not None or (path.is_dir() and _find_classes(path) is not None and _has_labels(path))


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read the data set of a folder or of a .yaml file.

    Raises:
        DataError: the classes cannot be read, or no image is found.
    """
    data = Annotated()
    yaml_file = _find_yaml(path)
    root = path if path.is_dir() else path.parent
    classes = _find_classes(root)
    if yaml_file is None:
        if classes is None:
            raise DataError(f"{path} holds no YOLO data set: it needs {LOOKED_FOR}.")
        data.class_names = _class_lines(classes)
        images = {image: split_of(image, root) for image in list_tree(root, IMAGE_SUFFIXES)}
    else:
        content = _load_yaml(yaml_file)
        data.class_names = _class_names(content["names"], yaml_file)
        if classes is not None and (lines := _class_lines(classes)) != data.class_names:
            data.notes.append(f"{classes} names {lines}; the names of {yaml_file} were taken: {data.class_names}.")
        images = _listed_images(content, yaml_file, data.notes)
    if not images:
        raise DataError(f"{path}: no image was found. Put the images beside their labels, or in images/ and labels/.")
    negatives, used = 0, set()
    for image, split in images.items():
        label = _label_file(image)
        used.add(label.resolve())
        negatives += not label.is_file()
        size = data.read_size(image)
        if size is not None:
            data.add_image(split, image, size, _read_label(label, size, data))
    if negatives:
        data.notes.append(f"{negatives} images have no text file: they are taken to be without objects.")
    if yaml_file is None:
        orphans = [file for file in _label_files(root) if file.resolve() not in used]
        data.problems += [f"{file}: there is no image of this name. Add it, or remove the file." for file in orphans]
    return data


def _find_yaml(path: Path) -> Path | None:
    files = [path] if path.is_file() else sorted(path.glob("*.y*ml")) if path.is_dir() else []
    chosen = (file for file in files if file.suffix in (".yaml", ".yml") and not file.name.startswith("."))
    return next((file for file in chosen if _load_yaml(file, quiet=True)), None)


def _load_yaml(file: Path, quiet: bool = False) -> dict[str, Any]:
    """The content of a data.yaml; empty where it is another file and `quiet`."""
    try:
        content = yaml.safe_load(file.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        if quiet:
            return {}
        raise DataError(f"{file} cannot be read as YAML ({error}).") from error
    sound = isinstance(content, dict) and "names" in content and any(key in content for key in _SPLIT_KEYS)
    return content if sound else {}


def _class_names(names: Any, file: Path) -> list[str]:
    if isinstance(names, dict):
        keys = sorted(names, key=str) if not all(isinstance(key, int) for key in names) else sorted(names)
        if keys != list(range(len(keys))):
            raise DataError(f"{file}: `names` has the keys {keys}; it needs 0 to {len(keys) - 1}, one a class.")
        names = [names[key] for key in keys]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: `names` is {str(names)[:60]}; it needs a list of classes, or number: class.")
    for index, name in enumerate(names):
        if isinstance(name, bool | list | dict) or name is None or not str(name).strip():
            raise DataError(f"{file}: YAML reads class {index} as {name!r}. Put its name in quotes.")
    names = [str(name) for name in names]
    if len(set(names)) < len(names):
        raise DataError(f"{file}: `names` has a class more than once: {names}. Give each a name of its own.")
    return names


def _find_classes(root: Path) -> Path | None:
    return next((file for file in list_tree(root, (".txt",)) if file.name == "classes.txt"), None)


def _class_lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except ValueError as error:
        raise DataError(f"{file} is no text of UTF-8 ({error}). Write it as UTF-8, a class a line.") from error
    while lines and not lines[-1].strip():
        lines.pop()
    return _class_names([line.strip() for line in lines], file)


def _label_files(root: Path) -> list[Path]:
    others = ("classes.txt", "train.txt", "val.txt", "test.txt", "notes.txt")
    files = list_tree(root, (".txt",))
    return [file for file in files if file.name not in others and not file.name.lower().startswith("readme")]


def _has_labels(root: Path) -> bool:
    for file in _label_files(root):
        try:
            words = file.read_text(encoding="utf-8-sig").split()
            numbers = [float(word) for word in words[:7]]
            if numbers:
                return True
        except (OSError, ValueError):
            continue
    return False


def _listed_images(content: dict[str, Any], file: Path, notes: list[str]) -> dict[Path, str]:
    """Images of all splits that a data.yaml names, by path."""
    images: dict[Path, str] = {}
    for key, split in _SPLIT_KEYS.items():
        value = content.get(key)
        for entry in value if isinstance(value, list) else [value] if value else []:
            place = _find_place(str(entry), str(content.get("path") or ""), file)
            if place is None:
                notes.append(f"{file}: `{key}: {entry}` does not exist on this machine, and was left out.")
                continue
            found = _images_of_list(place) if place.is_file() else list_tree(place, IMAGE_SUFFIXES)
            for image in found:
                if images.setdefault(image, split) != split:
                    raise DataError(f"{file}: {image} is in the split {images[image]} and in {split}. Keep one.")
    return images


def _images_of_list(file: Path) -> list[Path]:
    """Images that a text file lists, a path a line."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    return [file.parent / line.removeprefix("./") for line in lines if line]


def _find_place(entry: str, base: str, file: Path) -> Path | None:
    """Folder or list of a split: below `path`, else below the .yaml, without leading folders that are not here."""
    parts = [part for part in PureWindowsPath(entry).parts if part not in ("..", ".")]
    tails = [file.parent.joinpath(*parts[start:]) for start in range(len(parts)) if ":" not in parts[start]]
    candidates = [file.parent / base / entry, file.parent / entry, *tails]
    return next((place for place in candidates if place.exists() and place != Path(place.anchor)), None)


def _label_file(image: Path) -> Path:
    """The text file of an image: in `labels` for the last `images` of its path, else beside it."""
    parts = list(image.parts)
    for index in reversed(range(len(parts) - 1)):
        if parts[index] == "images":
            return Path(*parts[:index], "labels", *parts[index + 1 :]).with_suffix(".txt")
    return image.with_suffix(".txt")


def _read_label(file: Path, size: tuple[int, int], data: Annotated) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        data.problems.append(f"{file} cannot be read as text ({error}).")
        return []
    annotations = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                category, points = _parse_line(line, len(data.class_names))
            except ValueError as error:
                data.problems.append(f"{file}, line {number}: {error}")
                continue
            scaled = [value * size[0 if index % 2 else 1] for index, value in enumerate(points)]
            annotations.append(polygon_annotation([scaled], category))
    return annotations


def _parse_line(line: str, num_classes: int) -> tuple[int, list[float]]:
    """Class and coordinates, parts of width and height."""
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        raise ValueError(f"{line[:60]!r} are not numbers: class x0 y0 x1 y1 ... is needed.") from None
    if not all(map(math.isfinite, values)):
        raise ValueError("a number is not finite.")
    category, points = values[0], values[1:]
    if category != int(category) or not 0 <= category < num_classes:
        raise ValueError(f"class {category:g} is unknown: there are {num_classes} classes, 0..{num_classes - 1}.")
    if len(points) == 4:
        raise ValueError("these 5 numbers are a box, not a mask. Export segmentation (polygons).")
    if len(points) < 6 or len(points) % 2:
        raise ValueError(f"{len(points)} coordinates: a polygon needs x and y of 3 points or more.")
    if min(points) < -_MARGIN or max(points) > 1 + _MARGIN:
        raise ValueError("coordinates are not within 0..1: divide x by the width and y by the height.")
    return int(category), [min(max(value, 0.0), 1.0) for value in points]
