"""COCO results: one list for `pycocotools.coco.COCO.loadRes`, made of the lists of single images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from maskrcnn_plus.arrays import as_array
from maskrcnn_plus.atomic import write_atomically

if TYPE_CHECKING:
    from detectron2.structures import Instances


def coco_results(instances: Instances, file_name: str, name: str) -> bytes:
    """Results of one image as JSON.

    Besides COCO's keys an entry has `file_name`, `name` (that of the image's other results) and `label_id`, its value
    in the label image. `category_id` is that of the data set where the instances know it (`Predictions`), else the
    index of the class from 0; `image_id` is 1.
    """
    boxes = as_array(instances.pred_boxes.tensor).copy()  # [N, 4]
    boxes[:, 2:] -= boxes[:, :2]  # xyxy -> XYWH
    columns = boxes, instances.scores, instances.pred_classes
    fields = zip(*(column.tolist() for column in columns), instances.pred_masks_rle, strict=True)
    ids = getattr(instances, "category_ids", None)
    entries = [
        {
            "image_id": 1,
            "file_name": file_name,
            "name": name,
            "label_id": label_id,
            "category_id": ids[category] if ids else category,
            "bbox": box,
            "score": score,
            "segmentation": rle,
        }
        for label_id, (box, score, category, rle) in enumerate(fields, start=1)
    ]
    return json.dumps(entries).encode()


def merge_coco(path: str | Path, parts: Sequence[str | Path]) -> None:
    """Write the results of all images as one list, in which `image_id` counts the images from 1.

    Args:
        path: the file to write.
        parts: a file of `coco_results` an image.
    """
    write_coco(path, (json.loads(Path(part).read_bytes()) for part in parts))


def write_coco(path: str | Path, images: Iterable[Sequence[dict[str, Any]]]) -> None:
    """Write the entries of images as one list, in which `image_id` counts the images from 1.

    Args:
        path: the file to write.
        images: entries as of `coco_results` for each image, of which one is in memory at a time.
    """

    def write(file: IO[bytes]) -> None:
        file.write(b"[")
        first = True
        for image_id, entries in enumerate(images, start=1):
            for entry in entries:
                file.write((b"" if first else b",\n") + json.dumps({**entry, "image_id": image_id}).encode())
                first = False
        file.write(b"]\n")

    write_atomically(path, write, durable=True)
