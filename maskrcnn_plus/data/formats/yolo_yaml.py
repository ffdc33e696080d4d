"""The data.yaml of YOLO: names of classes, and where the images of each split are, often on somebody else's machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.annotated import Annotated
from maskrcnn_plus.data.formats.files import damaged, list_tree, read_text
from maskrcnn_plus.data.images import IMAGE_SUFFIXES
from maskrcnn_plus.special_files import refuse_special_file

SPLIT_KEYS = {"train": "train", "val": "val", "valid": "val", "test": "test"}


def find_yaml(path: Path, raises: bool = False) -> Path | None:
    """The data.yaml of a folder, at its top before its sub-folders, or the file itself.

    Args:
        path: folder or file.
        raises: where none is found, raise the DataError of a .yaml that cannot be read.
    """
    errors = []
    for file in sorted(list_tree(path, (".yaml", ".yml")), key=lambda file: len(file.parts)):
        try:
            content = load_yaml(file)
        except DataError as error:
            damaged(file, error)
            errors.append(error)
            continue
        if isinstance(content, dict) and "names" in content and any(key in content for key in SPLIT_KEYS):
            return file
    if errors and raises:
        raise errors[0]
    return None


def load_yaml(file: Path) -> Any:
    """Content of a YAML file, every value as the text that stands there: NA, no and 1.0 are names too.

    Raises:
        DataError: naming the file that is no YAML.
    """
    try:
        refuse_special_file(file)
        return yaml.load(file.read_bytes(), Loader=yaml.BaseLoader)
    except (OSError, ValueError, RecursionError, TypeError, yaml.YAMLError) as error:
        raise DataError(f"{file} cannot be read as YAML ({error}).") from error


def class_names(names: Any, file: Path) -> dict[int, str]:
    """Name of each number of a class, from a list or from number: name.

    Raises:
        DataError: `names` is something else.
    """
    needed = "it needs a list of classes, or number: class"
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise DataError(f"{file}: `names` holds no classes; {needed}.")
    found = {}
    for key, name in names.items():
        if not isinstance(name, str) or not name.strip() or not str(key).isdecimal() or len(str(key)) > 9:
            raise DataError(f"{file}: `names` has {str(key)[:20]!r} that is no number with a name; {needed}.")
        found[int(key)] = name.strip()
    return found


def listed_images(content: dict[str, Any], file: Path, root: Path, data: Annotated) -> dict[Path, str]:
    """Split of each image of a data.yaml; an image of several splits is of the first."""
    images: dict[Path, str] = {}
    twice: dict[tuple[str, str], int] = {}
    for key, split in SPLIT_KEYS.items():
        value, base = content.get(key), content.get("path")
        for entry in value if isinstance(value, list) else [value] if value else []:
            if not isinstance(entry, str):  # nested lists, which aliases can make endless
                raise DataError(f"{file}: `{key}` must be a folder, a list file, or a list of these.")
            place = _find_place(entry, base if isinstance(base, str) else "", file, root)
            if place is None:
                data.notes.append(f"{file}: `{key}: {entry[:80]}` is not there or outside of the folder: left out.")
                continue
            for image in _images_of_list(place, root, data) if place.is_file() else list_tree(place, IMAGE_SUFFIXES):
                first = images.setdefault(image, split)
                if first != split:
                    twice[first, split] = twice.get((first, split), 0) + 1
    for (first, second), count in twice.items():
        data.notes.append(f"{file}: {count} images are in {first} and in {second}: they were taken for {first} alone.")
    return images


def _images_of_list(file: Path, root: Path, data: Annotated) -> list[Path]:
    """Images that a text file lists, a path a line."""
    try:
        lines = [line.strip() for line in read_text(file).splitlines()]
    except DataError as error:
        data.problems.append(str(error))
        return []
    images = []
    for number, line in enumerate(lines, start=1):
        if line and not line.lower().endswith(IMAGE_SUFFIXES):
            data.problems.append(f"{file}, line {number} names no image.")
        elif line:
            candidates = [file.parent / line, *_tails(line, [file.parent, root])]
            found = next((image for image in candidates if image.is_file()), None)
            if found is None:
                data.missing.append(line)
            else:
                images.append(found)
    return images


def _find_place(entry: str, base: str, file: Path, root: Path) -> Path | None:
    """Folder or list of a split: below `path`, else below the .yaml or the root without leading folders.

    Where a folder was named, what lies outside of it is not looked at: its .yaml would have to be.
    """
    candidates = [file.parent / base / entry, file.parent / entry, *_tails(entry, [file.parent, root])]
    for place in candidates:
        try:
            inside = root.is_file() or place.resolve().is_relative_to(root.resolve())
            if inside and place.exists() and place != Path(place.anchor):
                return place
        except (OSError, ValueError):
            continue
    return None


def _tails(entry: str, folders: Sequence[Path]) -> list[Path]:
    parts = [part for part in PureWindowsPath(entry).parts if part not in ("..", ".") and not part.endswith("\\")]
    return [folder.joinpath(*parts[start:]) for start in range(len(parts)) for folder in folders if parts[start] != "/"]
