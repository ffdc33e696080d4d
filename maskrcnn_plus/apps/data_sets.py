"""Data sets written to a folder: COCO, label images, YOLO. Each writer links the images, or copies them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from PIL import Image

from maskrcnn_plus.atomic import link_or_copy
from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.masks import record_rles
from maskrcnn_plus.masks.label_map import rles_to_label_map
from maskrcnn_plus.masks.measure import rle_areas
from maskrcnn_plus.masks.polygons import clip_polygon
from maskrcnn_plus.results.yolo import data_yaml, yolo_line, yolo_lines

Splits = dict[str, list[dict[str, Any]]]
"""Detectron2 dataset dicts by split."""


def write_coco(splits: Splits, class_names: Sequence[str], output: Path) -> list[str]:
    """Write annotations/SPLIT.json and images/SPLIT/.

    Args:
        splits: images and annotations.
        class_names: name of each category id.
        output: an empty folder.

    Returns:
        What changes by the format, a sentence each.
    """
    (output / "annotations").mkdir()
    categories = [{"id": index, "name": name} for index, name in enumerate(class_names, start=1)]
    for split, records in splits.items():
        folder = output / "images" / split
        folder.mkdir(parents=True)
        images, annotations = [], []
        for image_id, (record, stem) in enumerate(zip(records, _unique_stems(records), strict=True), start=1):
            source = Path(record["file_name"])
            link_or_copy(source, folder / f"{stem}{source.suffix}")
            size = {"height": record["height"], "width": record["width"]}
            images.append({"id": image_id, "file_name": f"{stem}{source.suffix}", **size})
            for entry, rle in zip(record["annotations"], record_rles(record), strict=True):
                annotations.append(_coco_annotation(entry, rle, image_id, len(annotations) + 1))
        content = {"images": images, "annotations": annotations, "categories": categories}
        (output / "annotations" / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return []


def _coco_annotation(entry: dict[str, Any], rle: dict[str, Any], image_id: int, number: int) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": entry["category_id"] + 1,
        "segmentation": entry.get("segmentation", rle),
        "bbox": BoxMode.convert(list(entry["bbox"]), BoxMode(entry["bbox_mode"]), BoxMode.XYWH_ABS),
        "area": int(rle_areas([rle])[0]),
        "iscrowd": entry.get("iscrowd", 0),
    }


def write_labels(splits: Splits, class_names: Sequence[str], output: Path) -> list[str]:
    """Write images/, labels/ and splits.json; of several classes labels/ID.json, {label: class}, too.

    Args, Returns: as of `write_coco`.

    Raises:
        DataError: there are crowds, or objects that others cover.
    """
    used = {each["category_id"] for records in splits.values() for record in records for each in record["annotations"]}
    for name in ("images", "labels"):
        (output / name).mkdir()
    lists: dict[str, list[str]] = {split: [] for split in splits}
    stems = iter(_unique_stems([record for records in splits.values() for record in records]))
    shared = 0
    for split, records in splits.items():
        for record in records:
            stem, source = next(stems), Path(record["file_name"])
            shared += _write_label_map(record, output / "labels" / f"{stem}.png")
            if len(used) > 1:
                names = [class_names[each["category_id"]] for each in record["annotations"]]
                content = json.dumps(dict(enumerate(names, start=1)), ensure_ascii=False)
                (output / "labels" / f"{stem}.json").write_text(content, encoding="utf-8")
            link_or_copy(source, output / "images" / f"{stem}{source.suffix}")
            lists[split].append(stem)
    (output / "splits.json").write_text(json.dumps(lists, indent=1), encoding="utf-8")
    return [f"{shared} pixels belong to several objects, and were given to the smallest of them."] if shared else []


def _write_label_map(record: dict[str, Any], path: Path) -> int:
    """Write the label image of an image, and return how many pixels are of several objects."""
    _refuse_crowds(record, "a label image")
    rles = record_rles(record)
    areas = rle_areas(rles) if rles else []
    label_map = rles_to_label_map(rles, [-float(area) for area in areas], record["height"], record["width"])
    hidden = set(range(1, len(rles) + 1)) - set(np.unique(label_map).tolist())
    if hidden:
        number = min(hidden) - 1
        raise DataError(
            f"{record['file_name']}, annotation {number}: smaller objects cover all of it, which a label image cannot "
            "say. Use --to coco."
        )
    if len(rles) >= 1 << 16:
        raise DataError(f"{record['file_name']}: {len(rles)} objects are more than a PNG can number. Use --to coco.")
    Image.fromarray(label_map.astype("uint16")).save(path)
    return int(sum(areas) - (label_map > 0).sum())


def write_yolo(splits: Splits, class_names: Sequence[str], output: Path) -> list[str]:
    """Write data.yaml, images/SPLIT/ and labels/SPLIT/.

    A polygon stays as it is; a mask becomes the outline of its pixels. Args, Returns: as of `write_coco`.

    Raises:
        DataError: there are crowds.
    """
    changed = 0
    for split, records in splits.items():
        for name in ("images", "labels"):
            (output / name / split).mkdir(parents=True)
        for record, stem in zip(records, _unique_stems(records), strict=True):
            source = Path(record["file_name"])
            link_or_copy(source, output / "images" / split / f"{stem}{source.suffix}")
            lines, lost = _yolo_label(record)
            changed += lost
            text = "".join(f"{line}\n" for line in lines)
            (output / "labels" / split / f"{stem}.txt").write_text(text, encoding="utf-8")
    (output / "data.yaml").write_bytes(data_yaml({split: f"images/{split}" for split in splits}, class_names))
    what = f"{changed} objects have holes or several parts: YOLO's lines have the outline of the largest part."
    return [what] if changed else []


def _yolo_label(record: dict[str, Any]) -> tuple[list[str], int]:
    """Lines of an image, and how many objects are not whole in them."""
    _refuse_crowds(record, "YOLO")
    height, width = record["height"], record["width"]
    lines, masks, categories = [], [], []
    for entry, rle in zip(record["annotations"], record_rles(record), strict=True):
        polygons = entry.get("segmentation")
        single = isinstance(polygons, list) and len(polygons) == 1
        ring = clip_polygon(np.reshape(polygons[0], (-1, 2)), width, height) if single else ()
        if len(ring):
            lines.append(yolo_line(entry["category_id"], ring, height, width))
        else:
            masks.append(rle)
            categories.append(entry["category_id"])
    outlines, changed = yolo_lines(masks, categories, height, width)
    return lines + outlines, changed


WRITERS: dict[str, Callable[[Splits, Sequence[str], Path], list[str]]] = {
    "coco": write_coco,
    "labels": write_labels,
    "yolo": write_yolo,
}
"""What writes a data set, by the name of its format."""


def _refuse_crowds(record: dict[str, Any], what: str) -> None:
    if any(entry.get("iscrowd", 0) for entry in record["annotations"]):
        raise DataError(f"{record['file_name']}: it has crowds, which {what} cannot say. Use --to coco.")


def _unique_stems(records: list[dict[str, Any]]) -> list[str]:
    """Name without extension of each image, with folders before it, and then a number, where it is taken."""
    taken: set[str] = set()
    stems = []
    for record in records:
        path = Path(record["file_name"])
        candidates = [path.stem, f"{path.parent.name}_{path.stem}", *(f"{path.stem}_{k}" for k in range(len(records)))]
        stems.append(next(stem for stem in candidates if stem.lower() not in taken))
        taken.add(stems[-1].lower())
    return stems
