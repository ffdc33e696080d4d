"""Cellpose: NAME_seg.npy beside an image NAME, a pickled dict whose `masks` are a label image.

Nothing in the file is executed: it is read as data (`weights/safe_pickle.py`).
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.annotated import Annotated
from maskrcnn_plus.data.formats.files import list_tree, split_of
from maskrcnn_plus.data.formats.image_finder import ImageFinder
from maskrcnn_plus.data.formats.instance_maps import read_instance_map, rle_annotations
from maskrcnn_plus.data.formats.options import ReadOptions
from maskrcnn_plus.data.images import ImageReadError
from maskrcnn_plus.special_files import refuse_special_file
from maskrcnn_plus.weights.safe_pickle import load_npy

LOOKED_FOR = "files NAME_seg.npy of Cellpose beside images"

_END, _PICTURE = "_seg.npy", "_cp_masks"
_CLASS = "object"


def matches(path: Path) -> bool:
    """Whether a folder, or a file, has Cellpose's masks, by the names."""
    return bool(_seg_files(path))


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read all such files of a folder, or one; their objects are of one class.

    Raises:
        DataError: there is none.
    """
    data, files = Annotated(class_names=[_CLASS]), _seg_files(path)
    if not files:
        raise DataError(f"{path} holds no masks of Cellpose: it needs {LOOKED_FOR}.")
    root = path if path.is_dir() else path.parent
    finder = ImageFinder(root, data)
    for file in files:
        stem = file.name.removesuffix(_END)
        try:
            label_map, stated = _read_masks(file, data)
        except (ValueError, OSError) as error:
            data.problems.append(str(error))
            continue
        image = finder.find_stem(stem, file.parent) or finder.find(stated or stem, file)
        if image is None or not data.is_new(image, str(file)):
            continue
        size = data.read_size(image)
        if size is None:
            continue
        if label_map.shape != size:
            what = " x ".join(map(str, label_map.shape))
            data.problems.append(
                f"{file}: the masks are {what}, its image {image} {size[0]} x {size[1]}. Segment the image as it is; "
                "of a stack save each plane as a file of its own."
            )
            continue
        data.add_image(split_of(file, root), image, size, rle_annotations(label_map))
    data.notes.append(f"Cellpose names no class: all objects are of the class {_CLASS!r}.")
    if path.is_dir():
        others = [each for each in finder.files if not data.has_image(each) and not each.stem.endswith(_PICTURE)]
        finder.note_left_out(f"have no {_END}", others)
    return data


def _seg_files(path: Path) -> list[Path]:
    return [file for file in list_tree(path, (".npy",)) if file.name.endswith(_END)]


def _read_masks(file: Path, data: Annotated) -> tuple[np.ndarray, str]:
    """Label image, integers [H, W] if it is one of a plane, and the name of the image that the file states.

    Raises:
        ValueError: naming the file.
    """
    refuse_special_file(file)
    try:
        if file.stat().st_size == 0:
            raise ValueError(f"{file} is empty.")
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = load_npy(content, str(file))
    except ValueError as error:
        why, stem = f"{str(error).rstrip('.')}.", file.name.removesuffix(_END)
        pictures = [file.with_name(f"{stem}{_PICTURE}{suffix}") for suffix in (".png", ".tif", ".tiff")]
        picture = next((each for each in pictures if each.is_file()), None)
        if picture is None:
            raise ValueError(f"{why} Save the masks of Cellpose as PNG, {pictures[0].name}.") from error
        data.notes.append(f"{why} {picture.name} was read instead.")
        return read_instance_map(picture)[0], ""
    if isinstance(found, list) and len(found) == 1 and isinstance(found[0], dict):
        masks, stated = found[0].get("masks"), found[0].get("filename")
    else:
        masks, stated = found, None
    if not isinstance(masks, np.ndarray) or masks.dtype.kind not in "iub":
        raise ImageReadError(f"{file} has no label image `masks`. Save it from Cellpose again.")
    masks = masks.squeeze()
    if masks.size == 0 or masks.min() < 0 or masks.max() > np.iinfo(np.int32).max:
        raise ImageReadError(f"{file}: its masks are empty, or hold values that are no labels.")
    return masks.astype(np.int32), stated if isinstance(stated, str) else ""
