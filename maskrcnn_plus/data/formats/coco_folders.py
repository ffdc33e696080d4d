"""Folders of COCO files as annotation services export them.

SPLIT/_annotations.coco.json beside the images, or annotations/*.json and images/.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.annotated import Annotated
from maskrcnn_plus.data.formats.coco import read_coco
from maskrcnn_plus.data.formats.files import WHOLE, list_tree, peek_json, read_json, split_of
from maskrcnn_plus.data.formats.options import ReadOptions

LOOKED_FOR = 'JSON files with "images" and "categories" (COCO)'


def matches(path: Path) -> bool:
    """Whether a folder, or a JSON file, is COCO's."""
    return any(_is_coco(peek_json(file)) for file in list_tree(path, (".json",)))


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read all COCO files of a folder, a split a file or folder, with classes matched by name.

    What the reader of COCO files assumes is a warning of its log.

    Raises:
        DataError: a file cannot be read, or two splits have an image in common.
    """
    data = Annotated()
    root = path if path.is_dir() else path.parent
    for file in list_tree(path, (".json",)):
        content = read_json(file)
        if not _is_coco(content):
            data.notes.append(f"{file} is no COCO file and was left out.")
            continue
        coco = read_coco(str(file), str(_image_root(file, root, content)))
        names = Counter(category.name for category in coco.categories)
        parents = {str(each.get("supercategory")) for each in content["categories"]}
        for category in coco.categories:
            if category.count == 0 and category.name in parents and names[category.name] == 1:
                data.notes.append(f"{file}: {category.name!r} is a group of classes without objects, and no class.")
            else:
                data.category(category.name)
        for name in (name for name, count in names.items() if count > 1):
            data.notes.append(f"{file}: {names[name]} categories are named {name!r} and were taken as one.")
        for record in coco.records:
            for entry in record["annotations"]:
                entry["category_id"] = data.category(coco.categories[entry["category_id"]].name)
            data.splits[_split(file, root)].append(record)
    if not data.splits:
        raise DataError(f"{path} holds no COCO file: it needs {LOOKED_FOR}.")
    _refuse_repeated(data)
    return data


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "categories"))


def _split(file: Path, root: Path) -> str:
    """Split by the folder, else by a word of the file's name: instances_train2017.json."""
    split = split_of(file, root)
    if split == WHOLE:
        words = [word for word in re.split(r"[^a-z]+", file.stem.lower()) if word]
        found = [split_of(Path(word, "x"), Path()) for word in words]
        split = next((each for each in found if each != WHOLE), WHOLE)
    return split


def _image_root(file: Path, root: Path, content: dict[str, Any]) -> Path:
    """The folder that holds most of the images, by name: that of the file, or another one of the data set."""
    names = [str(image.get("file_name", "")) for image in content["images"] if isinstance(image, dict)]
    names = [name.replace("\\", "/") for name in names]
    folders = [file.parent, root, *(each for each in sorted(root.rglob("*")) if each.is_dir())]
    found = [sum((each / n).is_file() or (each / n.rpartition("/")[2]).is_file() for n in names) for each in folders]
    return folders[found.index(max(found))]


def _refuse_repeated(data: Annotated) -> None:
    """Refuse an image in two files, whose annotations nobody could bring together."""
    seen: dict[str, str] = {}
    for split, records in data.splits.items():
        for record in records:
            path = str(Path(record["file_name"]).resolve())
            if path in seen:
                raise DataError(f"{path} is annotated twice, in the splits {seen[path]} and {split}. Keep one of them.")
            seen[path] = split
