"""Predictions as annotations: folders that annotation tools open and `maskrcnn_plus.data.formats` reads.

Each has the images, linked or written, and their annotations. What is of all images in one file (COCO, CVAT) is kept an
image a file in the hidden folder `.parts`, so that a run that was stopped goes on, and written whole at its end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.data.image_windows import ImageWindows
from maskrcnn_plus.results.coco_dataset import coco_part, merge_coco_dataset
from maskrcnn_plus.results.cvat import cvat_part, merge_cvat
from maskrcnn_plus.results.image_files import place_image
from maskrcnn_plus.results.imagej import roi_set
from maskrcnn_plus.results.labelme import labelme_json
from maskrcnn_plus.results.yolo import merge_yolo, yolo_label

if TYPE_CHECKING:
    from detectron2.structures import Instances

ClassNames = Sequence[str] | None


@dataclass(frozen=True)
class AnnotationSet:
    """A folder of a format, in which paths are relative to it.

    Attributes:
        encode: annotations of an image: instances, name of the image below `images`, names of classes.
        suffix: of their file.
        parts: folder of these files.
        images: folder of the images.
        merged: file of all images.
        merge: writes it: path, files of the images, names of classes.
    """

    encode: Callable[[Instances, str, ClassNames], bytes]
    suffix: str
    parts: str = ""
    images: str = ""
    merged: str | None = None
    merge: Callable[[Path, Sequence[Path], ClassNames], None] | None = None

    def part(self, folder: Path, name: str) -> Path:
        """File of the annotations of the image NAME below `folder`."""
        return folder / self.parts / f"{name}{self.suffix}"


class _Yolo(AnnotationSet):
    def part(self, folder: Path, name: str) -> Path:
        """The file that YOLO looks for: the last `images` of an image's path is `labels`."""
        parts = list(PurePosixPath(self.images, f"{name}{self.suffix}").parts)
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        return folder.joinpath(*parts)


ANNOTATION_SETS = {
    "coco-dataset": AnnotationSet(
        coco_part, ".json", ".parts", "images", "annotations/instances_default.json", merge_coco_dataset
    ),
    "yolo": _Yolo(yolo_label, ".txt", "labels", "images", "data.yaml", merge_yolo),
    "labelme": AnnotationSet(labelme_json, ".json"),
    "cvat": AnnotationSet(cvat_part, ".xml", ".parts", "images", "annotations.xml", merge_cvat),
    "imagej": AnnotationSet(roi_set, ".zip"),
}
"""By the name of the format, which is that of its folder too."""


def write_annotated(
    kind: str,
    output: Path,
    name: str,
    instances: Instances,
    image: ImageWindows | None,
    source: str | os.PathLike | None,
    class_names: ClassNames,
) -> dict[str, Path]:
    """Write an image and its annotations.

    Args:
        kind: key of `ANNOTATION_SETS`.
        output: folder in which that of the format lies.
        name: NAME of the image, which may have sub-folders.
        instances: with `scores`, `pred_classes` and `pred_masks_rle`.
        image: pixels of the image, where its file cannot be linked.
        source: its file.
        class_names: name of each class.

    Returns:
        Files by "KIND" and "KIND image".
    """
    chosen, folder = ANNOTATION_SETS[kind], output / kind
    picture = place_image(folder / chosen.images / name, source, image)
    part = chosen.part(folder, name)
    part.parent.mkdir(parents=True, exist_ok=True)
    image_name = picture.relative_to(folder / chosen.images).as_posix()
    write_atomically(part, chosen.encode(instances, image_name, class_names))
    return {kind: part, f"{kind} image": picture}
