"""Annotations of any format that is read, written as a data set that the shipped configs train on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode
from PIL import Image

from maskrcnn_plus.data.check import DataError, check_dataset, report_problems
from maskrcnn_plus.data.formats import Annotated, ReadOptions, read
from maskrcnn_plus.data.split import train_and_val
from maskrcnn_plus.masks.label_map import rles_to_label_map
from maskrcnn_plus.masks.measure import rle_areas
from maskrcnn_plus.masks.polygons import polygons_to_rle


def convert(
    folder: Path,
    output: Path,
    to: str,
    name: str | None = None,
    val: float = 0.2,
    on_error: str = "raise",
    options: ReadOptions | None = None,
) -> list[str]:
    """Read a folder and write it as COCO or as label images.

    The output folder appears whole, or not at all.

    Args:
        folder: folder or annotation file.
        output: a new folder, or an empty one.
        to: "coco": annotations/SPLIT.json and images/SPLIT/; "labels": images/, labels/ and splits.json.
        name: the format of `folder`; None finds it.
        val: part of the images for validation, where the folder has no such split.
        on_error: "raise", or "skip" to leave out images and annotations that cannot be used.
        options: how the annotations are read.

    Returns:
        What was found, assumed and left out, a line each.

    Raises:
        DataError: the data cannot be read or written so, or `output` has files.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output} exists and is not empty. Give a new folder.")
    data = read(folder, name, options)
    report_problems(data.problems, on_error)
    lines = [f"{folder}: {data.format}"]
    splits = {}
    for split, records in data.splits.items():
        splits[split] = check_dataset(records, on_error=on_error, num_classes=len(data.class_names))
    splits, notes = train_and_val(splits, val)
    data.notes += notes
    for split, records in splits.items():
        counts = Counter(data.class_names[each["category_id"]] for record in records for each in record["annotations"])
        objects = ", ".join(f"{class_name} {count}" for class_name, count in counts.items()) or "no objects"
        lines.append(f"  {split}: {len(records)} images ({objects})")
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".", suffix=".maskrcnn_plus.tmp", dir=output.parent))
    try:
        (_write_coco if to == "coco" else _write_labels)(splits, data, temporary)
        temporary.chmod(0o755)
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    lines += [f"  assumed: {note}" for note in data.notes]
    lines += [f"  left out: {problem}" for problem in data.problems]
    return [*lines, f"written to {output}"]


def _write_coco(splits: dict[str, list[dict]], data: Annotated, output: Path) -> None:
    (output / "annotations").mkdir()
    categories = [{"id": index, "name": name} for index, name in enumerate(data.class_names, start=1)]
    for split, records in splits.items():
        folder = output / "images" / split
        folder.mkdir(parents=True)
        images, annotations = [], []
        for image_id, (record, stem) in enumerate(zip(records, _unique_stems(records), strict=True), start=1):
            source = Path(record["file_name"])
            _link(source, folder / f"{stem}{source.suffix}")
            size = {"height": record["height"], "width": record["width"]}
            images.append({"id": image_id, "file_name": f"{stem}{source.suffix}", **size})
            for entry in record["annotations"]:
                annotations.append(_coco_annotation(entry, record, image_id, len(annotations) + 1))
        content = {"images": images, "annotations": annotations, "categories": categories}
        (output / "annotations" / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _coco_annotation(entry: dict[str, Any], record: dict[str, Any], image_id: int, number: int) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": entry["category_id"] + 1,
        "segmentation": entry["segmentation"],
        "bbox": BoxMode.convert(list(entry["bbox"]), BoxMode(entry["bbox_mode"]), BoxMode.XYWH_ABS),
        "area": int(rle_areas([_rle(entry, record)])[0]),
        "iscrowd": entry.get("iscrowd", 0),
    }


def _write_labels(splits: dict[str, list[dict]], data: Annotated, output: Path) -> None:
    used = {each["category_id"] for records in splits.values() for record in records for each in record["annotations"]}
    if len(used) > 1:
        names = ", ".join(data.class_names[index] for index in sorted(used))
        raise DataError(f"Label images hold one class, and there are {len(used)}: {names}. Use --to coco.")
    for name in ("images", "labels"):
        (output / name).mkdir()
    everything = [record for records in splits.values() for record in records]
    lists: dict[str, list[str]] = {split: [] for split in splits}
    stems = iter(_unique_stems(everything))
    shared = 0
    for split, records in splits.items():
        for record in records:
            stem, source = next(stems), Path(record["file_name"])
            shared += _write_label_map(record, output / "labels" / stem)
            _link(source, output / "images" / f"{stem}{source.suffix}")
            lists[split].append(stem)
    (output / "splits.json").write_text(json.dumps(lists, indent=1), encoding="utf-8")
    if shared:
        data.notes.append(f"{shared} pixels belong to several objects, and were given to the smallest of them.")


def _write_label_map(record: dict[str, Any], path: Path) -> int:
    """Write the label image of an image, and return how many pixels are of several objects."""
    if any(entry.get("iscrowd", 0) for entry in record["annotations"]):
        raise DataError(f"{record['file_name']}: it has crowds, which a label image cannot say. Use --to coco.")
    rles = [_rle(entry, record) for entry in record["annotations"]]
    areas = rle_areas(rles) if rles else []
    label_map = rles_to_label_map(rles, [-float(area) for area in areas], record["height"], record["width"])
    hidden = set(range(1, len(rles) + 1)) - set(label_map.reshape(-1).tolist())
    if hidden:
        number = min(hidden) - 1
        raise DataError(
            f"{record['file_name']}, annotation {number}: smaller objects cover all of it, which a label image cannot "
            "say. Use --to coco."
        )
    if len(rles) >= 1 << 16:
        raise DataError(f"{record['file_name']}: {len(rles)} objects are more than a PNG can number. Use --to coco.")
    Image.fromarray(label_map.astype("uint16")).save(f"{path}.png")
    return int(sum(areas) - (label_map > 0).sum())


def _rle(entry: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    mask = entry["segmentation"]
    return mask if isinstance(mask, dict) else polygons_to_rle(mask, record["height"], record["width"])


def _unique_stems(records: list[dict]) -> list[str]:
    """Name without extension of each image, with folders before it, and then a number, where it is taken."""
    taken: set[str] = set()
    stems = []
    for record in records:
        path = Path(record["file_name"])
        candidates = [path.stem, f"{path.parent.name}_{path.stem}", *(f"{path.stem}_{k}" for k in range(len(records)))]
        stems.append(next(stem for stem in candidates if stem.lower() not in taken))
        taken.add(stems[-1].lower())
    return stems


def _link(source: Path, target: Path) -> None:
    """Hard link a file, or copy it where the file system has no such link."""
    source = source.resolve()
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
