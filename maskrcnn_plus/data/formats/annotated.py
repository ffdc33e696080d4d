"""What every reader gives, and what several of them need: annotations of polygons, images by their names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from maskrcnn_plus.data.formats.files import list_tree
from maskrcnn_plus.data.images import IMAGE_SUFFIXES, ImageReadError, read_image_size


@dataclass
class Annotated:
    """Images and annotations of a folder.

    Attributes:
        class_names: name of each category id.
        splits: Detectron2 dataset dicts by split: "train", "val", "test", or `files.WHOLE`. Annotations have
            `segmentation` (polygons [x0, y0, x1, y1, ...] in pixels or COCO RLE), `bbox` (with `bbox_mode`) and
            `category_id`.
        notes: what was assumed or left out, a sentence each.
        problems: what cannot be used, a line each with file and annotation.
        format: name of the format that was read.
    """

    class_names: list[str] = field(default_factory=list)
    splits: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    format: str = ""

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
