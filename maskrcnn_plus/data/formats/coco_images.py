"""The images of a COCO file: ids and paths told apart, found where the file puts them elsewhere, sizes filled in."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.coco_ids import canonical_id
from maskrcnn_plus.data.images import ImageReadError, read_image_size

_SHOWN = 8


def read_images(
    images: list[Any], image_root: str, json_file: str, notes: list[str], problems: list[str]
) -> dict[Any, dict[str, Any]]:
    """Canonical image id -> dataset dict without annotations; ids of one file share their dict.

    Args:
        images: as they stand in the file.
        image_root: folder that their `file_name`s are relative to.
        json_file: named in errors.
        notes: what had to be assumed is added here.
        problems: images that cannot be used are added here.

    Raises:
        DataError: several images have one id.
    """
    records: dict[Any, dict[str, Any]] = {}
    by_file: dict[str, dict[str, Any]] = {}
    names: dict[Any, str] = {}
    clashes: dict[Any, list[str]] = defaultdict(list)
    moved, repeated, same_file, sized = [], [], [], []
    for number, image in enumerate(images):
        name = image.get("file_name") if isinstance(image, dict) else None
        key = canonical_id(image.get("id")) if isinstance(image, dict) else None
        if key is None or not isinstance(name, str) or not name:
            problems.append(f'images[{number}] is {str(image)[:80]}, but an image needs an "id" and a "file_name".')
        elif key in names:
            if name != names[key]:
                clashes[key].append(name)
            else:
                repeated.append(name)
        else:
            names[key] = name
            path, is_moved = _find_file(image_root, name)
            moved += [f"{name} -> {path}"] * is_moved
            if path in by_file:
                same_file.append(name)
                records[key] = by_file[path]
                continue
            size, was_missing = _size(image, path)
            sized += [name] * was_missing
            records[key] = by_file[path] = {"file_name": path, **size, "image_id": image["id"], "annotations": []}
    if clashes:
        shown = "; ".join(f"id {key!r}: {', '.join([names[key], *clashes[key]])}" for key in list(clashes)[:_SHOWN])
        more = f"; and {len(clashes) - _SHOWN} more" if len(clashes) > _SHOWN else ""
        raise DataError(
            f"{json_file}: several images have one id, so that nobody can tell whose the annotations are: "
            f"{shown}{more}. Give each image an id of its own, and its annotations that id."
        )
    for found, text in (
        (repeated, "images listed more than once with the same id, taken once"),
        (same_file, "images listed under several ids, whose annotations were brought together, equal ones once"),
        (moved, "images found in the image folder under another path than the file gives"),
        (sized, 'images without "height" and "width", which were read from their files'),
    ):
        if found:
            notes.append(f"{text} ({len(found)}): {_some(found)}.")
    return records


def _find_file(image_root: str, name: str) -> tuple[str, bool]:
    """Path of an image, and whether it is at another place than the file says: without (some of) its folders."""
    path = os.path.join(image_root, name)
    if "://" in path or os.path.isfile(path):
        return path, False
    parts = name.replace("\\", "/").split("/")
    candidates = (os.path.join(image_root, *parts[start:]) for start in range(len(parts)))
    found = next((candidate for candidate in candidates if os.path.isfile(candidate)), None)
    return (path, False) if found is None else (found, True)


def _size(image: dict[str, Any], path: str) -> tuple[dict[str, Any], bool]:
    """`height` and `width` of an image, and whether they had to be read from its file; an unreadable one has none."""
    size = {key: canonical_id(image.get(key)) for key in ("height", "width") if image.get(key) is not None}
    if len(size) == 2:
        return size, False
    try:
        height, width = read_image_size(path)
    except ImageReadError:  # the check names it
        return {}, False
    return {"height": height, "width": width}, True


def _some(names: Iterable[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
