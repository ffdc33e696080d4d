"""A COCO data set of predictions: images/ and annotations/instances_default.json, masks as RLE."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maskrcnn_plus.atomic import write_atomically
from maskrcnn_plus.masks.measure import rle_areas, rle_boxes
from maskrcnn_plus.results.overlay import class_label

if TYPE_CHECKING:
    from detectron2.structures import Instances


def coco_part(instances: Instances, image_name: str, class_names: Sequence[str] | None = None) -> bytes:
    """Image and annotations of one image, whose ids `merge_coco_dataset` gives.

    Args:
        instances: with `scores`, `pred_classes` and `pred_masks_rle`; empty masks are left out.
        image_name: of the image below images/.
        class_names: without effect, as classes are numbers here.
    """
    rles = instances.pred_masks_rle
    areas, boxes = rle_areas(rles), rle_boxes(rles)  # [N], xyxy [N, 4]
    boxes[:, 2:] -= boxes[:, :2]  # xyxy -> XYWH
    columns = instances.pred_classes, instances.scores, areas, boxes
    entries = [
        {
            "category_id": category + 1,
            "segmentation": rle,
            "bbox": box,
            "area": int(area),
            "iscrowd": 0,
            "score": score,
        }
        for category, score, area, box, rle in zip(*(column.tolist() for column in columns), rles, strict=True)
        if area
    ]
    height, width = instances.image_size
    image = {"file_name": image_name, "height": int(height), "width": int(width)}
    return json.dumps({"image": image, "annotations": entries}).encode()


def merge_coco_dataset(path: Path, parts: Sequence[Path], class_names: Sequence[str] | None) -> None:
    """Write the file of all images.

    Args:
        path: the file to write.
        parts: a file of `coco_part` an image.
        class_names: name of each class.
    """
    used = 0

    def annotations() -> Iterator[dict]:
        nonlocal used
        ids = itertools.count(1)
        for image_id, part in enumerate(parts, start=1):
            for entry in json.loads(part.read_bytes())["annotations"]:
                used = max(used, entry["category_id"])
                yield {"id": next(ids), "image_id": image_id, **entry}

    def write(file) -> None:
        images = [{"id": k, **json.loads(part.read_bytes())["image"]} for k, part in enumerate(parts, start=1)]
        file.write(b'{"images": ' + json.dumps(images).encode() + b',\n"annotations": [')
        for index, entry in enumerate(annotations()):
            file.write((b",\n" if index else b"\n") + json.dumps(entry).encode())
        names = class_names or [class_label(None, k) for k in range(used)]
        categories = [{"id": k, "name": name} for k, name in enumerate(names, start=1)]
        file.write(b'],\n"categories": ' + json.dumps(categories).encode() + b"}\n")

    write_atomically(path, write, durable=True)
