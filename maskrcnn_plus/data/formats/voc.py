"""Pascal VOC's segmentation: JPEGImages/ID.jpg, SegmentationObject/ID.png, SegmentationClass/ID.png.

An object is an index or a colour of SegmentationObject; its class is what most of its pixels have in SegmentationClass.
Index 255, and its colour, is the border between objects, which belongs to none.

Everingham et al., "The PASCAL VOC 2012 Development Kit" (2012), Section 4.
"""

from __future__ import annotations

from pathlib import Path, PurePath

import numpy as np

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.annotated import Annotated
from maskrcnn_plus.data.formats.files import SPLITS, WHOLE, list_tree, read_lines, split_of
from maskrcnn_plus.data.formats.image_finder import same_text
from maskrcnn_plus.data.formats.instance_maps import (
    colour_code,
    number_colours,
    read_colours,
    read_values,
    rle_annotations,
    split_components,
)
from maskrcnn_plus.data.formats.label_maps import label_map_annotations
from maskrcnn_plus.data.formats.options import ReadOptions
from maskrcnn_plus.data.formats.voc_names import ClassNames
from maskrcnn_plus.data.formats.xml_files import peek_tags
from maskrcnn_plus.data.images import IMAGE_SUFFIXES, ImageReadError

LOOKED_FOR = "folders JPEGImages and SegmentationObject of Pascal VOC"

OPTIONS = ("split_components",)

_OBJECTS, _CLASSES = ("SegmentationObject", "SegmentationObjectPNG"), ("SegmentationClass", "SegmentationClassPNG")
_BORDER, _BORDER_COLOUR = 255, colour_code(224, 224, 192)


def matches(path: Path) -> bool:
    """Whether a folder holds VOC's pictures of objects or classes."""
    return bool(_roots(path))


def find_boxes(path: Path) -> Path | None:
    """An XML file of boxes, VOC's Annotations, of a folder that may have no masks."""
    for file in list_tree(path, (".xml",)):
        tags = peek_tags(file)
        if tags[:1] == ["annotation"] and "bndbox" in tags:
            return file
    return None


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read the segmented images of all such folders.

    Raises:
        DataError: there is none, the objects are not told apart, or a list of names cannot be read.
    """
    data = Annotated()
    roots = _roots(path)
    if not roots:
        raise DataError(f"{path} holds no VOC segmentation: it needs {LOOKED_FOR}.")
    for root in roots:
        _read_root(root, path, options.split_components, data)
    return data


def _roots(path: Path) -> list[Path]:
    """Folders that hold one of objects or classes."""
    names = (*_OBJECTS, *_CLASSES)
    files = list_tree(path, IMAGE_SUFFIXES) if path.is_dir() else []
    folders = {folder for file in files for folder in file.parents if folder.name in names}
    return sorted({folder.parent for folder in folders if folder.is_relative_to(path)})


def _read_root(root: Path, path: Path, components: bool, data: Annotated) -> None:
    objects, classes = _pictures(root, _OBJECTS), _pictures(root, _CLASSES)
    if not objects and not components:
        raise DataError(
            f"{root}: SegmentationClass tells classes apart, not objects, and there is no SegmentationObject. Export "
            "instances, or take each connected piece for an object with --split-components (touching ones become one)."
        )
    names, splits, images = ClassNames(root), _read_splits(root, data), _images(root)
    sources = classes if components and classes else objects
    for key, file in sources.items():
        image = images.get(key) or images.get(PurePath(key.name))
        if image is None:
            data.problems.append(f"{file}: there is no image {key} in {root / 'JPEGImages'}. Add it.")
            continue
        size = data.read_size(image)
        if size is None:
            continue
        try:
            label_map, as_stored = _read_objects(file, size, components)
            values = [each["label_id"] for each in label_map_annotations(label_map)]
            of_value = _find_classes(classes.get(key), label_map, values, names)
        except ImageReadError as error:
            data.problems.append(str(error))
            continue
        categories = {value: data.category(name) for value, name in of_value.items()}
        split = splits.get(key.as_posix()) or splits.get(key.name) or split_of(image, path)
        annotations = (label_map_annotations if as_stored else rle_annotations)(label_map, categories)
        data.add_image(split, image, size, annotations)
        if as_stored:
            data.splits[split][-1]["label_file_name"] = str(file)
    present = {name for key in sources for name in (key.as_posix(), key.name)}
    data.problems += [
        f"{root / 'ImageSets'}: {name!r} is listed, but has no file in SegmentationObject. Add it, or remove the line."
        for name in splits
        if name not in present
    ]
    if not classes:
        data.notes.append(f"{root} has no SegmentationClass: all objects are of the class 'object'.")
    elif names.is_guess:
        found = ", ".join(data.class_names)
        data.notes.append(
            f"{root} has no labelmap.txt or class_names.txt: classes are named as those of VOC: {found}. If they are "
            "others, write class_names.txt there: a name a line, the background first."
        )
    if components:
        data.notes.append("connected pieces of a class are objects; those that touch are one.")


def _pictures(root: Path, folders: tuple[str, ...]) -> dict[PurePath, Path]:
    """Files of the first folder that is there, by their names below it without extension."""
    folder = next((root / name for name in folders if (root / name).is_dir()), None)
    files = [] if folder is None else list_tree(folder, IMAGE_SUFFIXES)
    return {_name(file.relative_to(folder)): file for file in files}


def _images(root: Path) -> dict[PurePath, Path]:
    """Images by their names below their folder, and by their mere names; those of JPEGImages first."""
    images: dict[PurePath, Path] = {}
    for file in sorted(list_tree(root, IMAGE_SUFFIXES), key=lambda file: "JPEGImages" not in file.parts):
        below = file.relative_to(root)
        if not below.parts[0].startswith("Segmentation"):
            for name in (PurePath(*below.parts[1:] or below.parts), PurePath(file.name)):
                images.setdefault(_name(name), file)
    return images


def _name(file: PurePath) -> PurePath:
    """Name of a picture without extension, in the one form of its letters."""
    return PurePath(same_text(str(file.with_suffix(""))))


def _read_splits(root: Path, data: Annotated) -> dict[str, str]:
    """Split of each name in the lists of ImageSets/Segmentation: train, val, test, else of the others."""
    splits: dict[str, str] = {}
    folder = root / "ImageSets" / "Segmentation"
    files = list_tree(folder, (".txt",)) if folder.is_dir() else []
    for file in sorted(files, key=lambda file: file.stem.lower() not in SPLITS):
        for name in read_lines(file):
            splits.setdefault(same_text(name.replace("\\", "/")), SPLITS.get(file.stem.lower(), WHOLE))
    others = [name for name, split in splits.items() if split == WHOLE]
    if others and len(others) < len(splits):
        data.notes.append(f"{folder}: {len(others)} names are in no list of train, val or test; taken for training.")
        splits.update(dict.fromkeys(others, "train"))
    return splits


def _read_objects(file: Path, size: tuple[int, int], components: bool) -> tuple[np.ndarray, bool]:
    """Objects of a picture, int [H, W] without borders, and whether the values are those of the file."""
    values, kind = read_values(file)
    if values.shape != size:
        raise ImageReadError(
            f"{file} is {values.shape[0]} x {values.shape[1]}, its image {size[0]} x {size[1]} (height x width). Both "
            "must have the same size."
        )
    values = np.where(values == (_BORDER_COLOUR if kind == "colour" else _BORDER), 0, values)
    values = number_colours(values) if kind == "colour" else values.astype(np.int32)
    return (split_components(values) if components else values), kind == "stored" and not components


def _find_classes(file: Path | None, label_map: np.ndarray, values: list[int], names: ClassNames) -> dict[int, str]:
    """Class of each object: that of most of its pixels which have one."""
    if file is None:
        return dict.fromkeys(values, "object")
    classes, kind = read_values(file)
    is_colour = kind == "colour"
    if kind == "stored" and names.has_colours and (colours := read_colours(file)) is not None:
        classes, is_colour = colours, True
    if classes.shape != label_map.shape:
        raise ImageReadError(f"{file} is not of the size of its image. Export it again.")
    border = _BORDER_COLOUR if is_colour else _BORDER
    inside = (label_map > 0) & (classes != 0) & (classes != border)
    pairs, counts = np.unique(np.stack([label_map[inside], classes[inside]]), axis=1, return_counts=True)
    found = {}
    for index in np.argsort(counts, kind="stable"):  # the most frequent comes last
        value, code = pairs[:, index].tolist()
        name = names.find(code, is_colour)
        if name is not None:
            found[value] = name
    missing = set(values) - found.keys()
    if missing:
        raise ImageReadError(f"{file}: object {min(missing)} has no pixel of a class of {names.source}. Correct it.")
    return found
