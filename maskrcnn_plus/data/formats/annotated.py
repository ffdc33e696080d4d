"""What every reader gives, and what several of them need: files of a folder, JSON, images by their names."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.images import IMAGE_SUFFIXES, ImageReadError, read_image_size
from maskrcnn_plus.special_files import refuse_special_file

WHOLE = "all"
"""Name of the split of a folder that has none."""

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass
class Annotated:
    """Images and annotations of a folder.

    Attributes:
        class_names: name of each category id.
        splits: Detectron2 dataset dicts by split: "train", "val", "test", or `WHOLE`. Annotations have `segmentation`
            (polygons [x0, y0, x1, y1, ...] in pixels or COCO RLE), `bbox` (with `bbox_mode`) and `category_id`.
        notes: what was assumed or left out, a sentence each.
        problems: what cannot be used, a line each with file and annotation.
    """

    class_names: list[str] = field(default_factory=list)
    splits: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def category(self, name: str) -> int:
        """Index of a class, which becomes known with this call."""
        if name not in self.class_names:
            self.class_names.append(name)
        return self.class_names.index(name)

    def read_size(self, path: Path) -> tuple[int, int] | None:
        """(height, width) of an image file; None, and a problem, where it cannot be read."""
        try:
            return read_image_size(str(path))
        except ImageReadError as error:
            self.problems.append(str(error))
            return None

    def add_image(self, split: str, path: Path, size: tuple[int, int], annotations: list[dict[str, Any]]) -> None:
        """Add an image with the (height, width) that `read_size` gave."""
        record = {"file_name": str(path), "height": size[0], "width": size[1], "image_id": str(path)}
        self.splits[split].append({**record, "annotations": annotations})


def polygon_annotation(polygons: Sequence[Sequence[float]], category: int) -> dict[str, Any]:
    """An object of one or more parts.

    Args:
        polygons: [x0, y0, x1, y1, ...] of each part, in pixels.
        category: index of its class.
    """
    points = np.concatenate([np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons])
    box = [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]
    return {
        "segmentation": [[float(value) for value in polygon] for polygon in polygons],
        "bbox": box,
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": category,
        "iscrowd": 0,
    }


def list_tree(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """Visible files below a folder, or the file itself, with one of the extensions; `._NAME` of macOS is hidden."""
    if path.is_file():
        return [path] if path.suffix.lower() in suffixes else []
    found = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        chosen = (name for name in sorted(names) if not name.startswith("."))
        found += [Path(folder, name) for name in chosen if Path(name).suffix.lower() in suffixes]
    return found


def read_json(path: Path) -> Any:
    """Content of a JSON file of UTF-8, -16 or -32, with or without a byte order mark.

    Raises:
        DataError: naming the file that is no JSON.
    """
    try:
        refuse_special_file(path)
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}). Export it again.") from error


def peek_json(path: Path) -> Any:
    """Content of a JSON file, None where it has none."""
    try:
        return read_json(path)
    except DataError:
        return None


def split_of(file: Path, root: Path) -> str:
    """Split that a folder between `root` and a file is named after, or `WHOLE`."""
    parts = file.relative_to(root).parts[:-1] if file.is_relative_to(root) else ()
    return next((_SPLITS[part.lower()] for part in parts if part.lower() in _SPLITS), WHOLE)


class ImageFinder:
    """Image files of a folder by name."""

    def __init__(self, root: Path) -> None:
        """List the folder.

        Args:
            root: folder of the data set.
        """
        self.files = list_tree(root, IMAGE_SUFFIXES)
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for file in self.files:
            self._by_name[file.name].append(file)
            self._by_stem[file.stem].append(file)

    def find(self, name: str, beside: Path) -> Path | None:
        """The image that an annotation file names.

        Args:
            name: as the file gives it, with folders of any machine.
            beside: the annotation file.

        Returns:
            The path relative to the annotation file; else the file's name beside it; else the only file below the root
            with this name; else the image beside the annotation file with that file's name; else None.
        """
        plain = name.replace("\\", "/")
        base = plain.rpartition("/")[2]
        for candidate in (beside.parent / plain, beside.parent / base):
            if base and candidate.is_file():
                return candidate
        if len(self._by_name.get(base, ())) == 1:
            return self._by_name[base][0]
        near = [file for file in self._by_stem.get(beside.stem, ()) if file.parent == beside.parent]
        return near[0] if len(near) == 1 else None
