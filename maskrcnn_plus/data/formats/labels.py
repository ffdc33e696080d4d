"""Label images: 0 is background, every other value or colour is an object; a file an image.

The masks stay in the label image (`label_file_name`, `label_id`), as of `label_maps`, where its values can be taken as
they are: memory does not grow with the number of objects. Several classes are named by labels/ID.json, {label: class},
or by a folder a class, labels/CLASS/ID.png.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.check_cache import fingerprint, get_cached
from maskrcnn_plus.data.formats.annotated import Annotated
from maskrcnn_plus.data.formats.files import SPLITS, read_json, split_of
from maskrcnn_plus.data.formats.folders import read_splits
from maskrcnn_plus.data.formats.image_finder import same_text
from maskrcnn_plus.data.formats.instance_maps import read_instance_map, rle_annotations, split_components
from maskrcnn_plus.data.formats.label_folders import LabelledImage, pair_files
from maskrcnn_plus.data.formats.label_maps import label_map_annotations
from maskrcnn_plus.data.formats.options import ReadOptions
from maskrcnn_plus.data.images import ImageReadError, read_image_size
from maskrcnn_plus.data.label_check import label_warnings, measure_labels

LOOKED_FOR = "label images: folders such as images/ and labels/ with the same names, or NAME.tif beside NAME_masks.tif"

OPTIONS = ("split_components",)

CLASS = "object"
"""Of objects whose class nothing names."""

_MANY_PIECES = 1.5  # an object, on the average of all images


def matches(path: Path) -> bool:
    """Whether a folder has images with label images, by their names."""
    return bool(pair_files(path).images)


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read the label images of a folder.

    Raises:
        DataError: there are none, a class file cannot be read, or they hold foreground and background only.
    """
    data, pairing = Annotated(), pair_files(path)
    if not pairing.images:
        raise DataError(f"{path} holds no label images: it needs {LOOKED_FOR}.")
    if pairing.rivals:
        raise DataError(
            f"{', '.join(map(str, pairing.rivals))}: these folders hold files of the same names, and nobody can tell "
            "which is meant. Move all but one away."
        )
    data.notes += [f"{folder} tells fewer objects apart and was left out." for folder in pairing.left_out]
    data.problems += [
        f"{file}: there is no image of this name. Add it, or remove the file." for file in pairing.orphans
    ]
    splits = _read_splits(path, pairing.images, data)
    class_files = {}
    for each in pairing.images:
        file = each.labels[0][0].with_suffix(".json")
        if len(each.labels) == 1 and file.is_file():
            class_files[file] = _read_classes(file)
    files = [str(file) for each in pairing.images for file in (each.image, *(label for label, _ in each.labels))]
    files += map(str, class_files)
    arguments = [[str(each.image), [[str(label), name] for label, name in each.labels]] for each in pairing.images]
    components = options.split_components
    key = fingerprint(["labels", components, *arguments], files)
    found = get_cached(
        key, lambda: {"images": [_read_image(each, class_files, components) for each in pairing.images]}
    )["images"]
    measured = {label: each for image in found for label, each in image["measured"].items()}
    if not components:
        _refuse_foreground(measured)
        data.notes += label_warnings(measured)
    pieces = 0
    for each, image in zip(pairing.images, found, strict=True):
        data.problems += image["problems"]
        split = splits.get(each.image, split_of(each.image, path))
        if "annotations" in image and split is not None:
            annotations = image["annotations"]
            for annotation in annotations:
                annotation["category_id"] = data.category(annotation["category_id"])
                annotation["bbox_mode"] = BoxMode.XYXY_ABS  # a number where it comes from JSON
            pieces += len(annotations)
            data.add_image(split, each.image, tuple(image["size"]), annotations)
            if image["label"]:
                data.splits[split][-1]["label_file_name"] = image["label"]
    if components:
        data.notes.append(f"connected pieces of equal pixels are objects: {pieces}. Those that touch are one.")
    if data.class_names == [CLASS]:
        data.notes.append(f"the label images name no class: all objects are of the class {CLASS!r}.")
    if pairing.unlabelled:
        count = len(pairing.unlabelled)
        data.notes.append(f"{count} images have no label image and were left out, {pairing.unlabelled[0]} among them.")
    return data


def _read_splits(path: Path, images: list[LabelledImage], data: Annotated) -> dict[Path, str | None]:
    """Splits by splits.json beside the folders: of each image there its split, None where it is in none."""
    splits: dict[Path, str | None] = {}
    for root in sorted({each.root for each in images}):
        lists = read_splits(str(root / "splits.json"))
        if not lists:
            continue
        entries = ((split, same_text(stem)) for split, stems in lists.items() for stem in stems)
        of_stem = {stem: SPLITS.get(split.lower(), split) for split, stem in entries}
        here = {same_text(each.image.stem): each.image for each in images if each.root == root}
        splits.update({image: of_stem.get(stem) for stem, image in here.items()})
        for stem in of_stem.keys() - here.keys():
            data.problems.append(f"{root / 'splits.json'}: {stem!r} has no image with a label image. Add or remove it.")
        if left_out := len(here.keys() - of_stem.keys()):
            data.notes.append(f"{left_out} images are in no split of {root / 'splits.json'} and were left out.")
    return splits


def _read_classes(file: Path) -> dict[int, str]:
    """Class of each label of an image."""
    content = read_json(file)
    expected = f'{file}: it must look like {{"1": "class", "2": "class"}}, an entry a label.'
    if not isinstance(content, dict) or not all(isinstance(name, str) and name.strip() for name in content.values()):
        raise DataError(expected)
    try:
        return {int(label): name for label, name in content.items()}
    except ValueError as error:
        raise DataError(expected) from error


@dataclass
class _Part:
    """A label image [H, W] of an image.

    Attributes:
        file: where it lies.
        label_map: its values.
        as_stored: whether they are those of the file.
        classes: name of the class of each value.
    """

    file: Path
    label_map: np.ndarray
    as_stored: bool
    classes: dict[int, str]


def _read_image(each: LabelledImage, class_files: dict[Path, dict[int, str]], components: bool) -> dict[str, Any]:
    """What is known of an image.

    Returns:
        Data for JSON: `problems`; what `measure_labels` says of each label image (`measured`); and, where all is good,
        `size`, `annotations`, whose categories are names, and `label`, the file that has their masks, or None.
    """
    found: dict[str, Any] = {"problems": [], "measured": {}}
    parts = []
    try:
        size = read_image_size(str(each.image))
        for file, class_name in each.labels:
            parts.append(_read_part(file, class_name, size, each.image, class_files, found["measured"]))
    except ImageReadError as error:
        found["problems"].append(str(error))
        return found
    parts = [part for part in parts if part.classes] or parts[:1]
    if len(parts) == 1 and parts[0].as_stored and not components:
        annotations = label_map_annotations(parts[0].label_map, parts[0].classes)
        return {**found, "size": size, "label": str(parts[0].file), "annotations": annotations}
    annotations = []
    for part in parts:
        label_map, classes = part.label_map, part.classes
        if components:
            label_map = split_components(part.label_map)
            pieces, places = np.unique(label_map, return_index=True)
            values = part.label_map.reshape(-1)[places]
            classes = {k: classes[v] for k, v in zip(pieces.tolist(), values.tolist(), strict=True) if k}
        annotations += rle_annotations(label_map, classes)
    return {**found, "size": size, "label": None, "annotations": annotations}


def _read_part(
    file: Path,
    class_name: str | None,
    size: tuple[int, int],
    image: Path,
    class_files: dict[Path, dict[int, str]],
    measured: dict[str, Any],
) -> _Part:
    """Read a label image of an image of `size` (H, W), and note what `measure_labels` says."""
    label_map, as_stored = read_instance_map(file)
    if label_map.shape != size:
        raise ImageReadError(
            f"{file}: the label image is {label_map.shape[0]} x {label_map.shape[1]}, its image {image} is {size[0]} x "
            f"{size[1]} (height x width). Both must have the same size."
        )
    objects = label_map_annotations(label_map)
    measured[str(file)] = measure_labels(label_map, objects)
    classes = {each["label_id"]: class_name or CLASS for each in objects}
    names = class_files.get(file.with_suffix(".json"))
    if names is not None:
        missing = classes.keys() - names.keys()
        if missing:
            raise ImageReadError(f"{file.with_suffix('.json')}: label {min(missing)} of {file} has no class. Add it.")
        classes = {value: names[value] for value in classes}
    return _Part(file, label_map, as_stored, classes)


def _refuse_foreground(measured: Mapping[str, dict[str, Any]]) -> None:
    """Refuse label images of one value each that is in several pieces, on the average of all.

    Raises:
        DataError: with what makes them objects.
    """
    filled = {file: each for file, each in measured.items() if each["objects"]}
    pieces = sum(each["pieces"] for each in filled.values())
    if any(each["objects"] > 1 for each in filled.values()) or pieces < _MANY_PIECES * max(len(filled), 1):
        return
    file, worst = max(filled.items(), key=lambda item: item[1]["pieces"])
    raise DataError(
        f"All {len(filled)} label images hold one value each, in {pieces} separate pieces: {file} has the value "
        f"{worst['largest']} in {worst['pieces']}. That tells foreground from background, not objects from each other. "
        "Give every object a number of its own, or take each connected piece for an object with --split-components "
        "(touching objects become one)."
    )
