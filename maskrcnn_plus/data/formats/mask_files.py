"""A mask file an object: ID/images/ID.png and ID/masks/*.png, of which all that is not 0 is the object."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.annotated import Annotated
from maskrcnn_plus.data.formats.files import list_tree, split_of, walk
from maskrcnn_plus.data.formats.instance_maps import read_instance_map
from maskrcnn_plus.data.formats.masks import mask_annotation
from maskrcnn_plus.data.formats.options import ReadOptions
from maskrcnn_plus.data.images import IMAGE_SUFFIXES, ImageReadError

LOOKED_FOR = "folders ID with one image in ID/images and a mask of one value an object in ID/masks"

_CLASS = "object"


def matches(path: Path) -> bool:
    """Whether a folder has a folder an image, with masks of one value each."""
    for folder in _image_folders(path):
        for file in list_tree(folder / "masks", IMAGE_SUFFIXES)[:1]:
            try:
                return len(np.unique(read_instance_map(file)[0])) <= 2
            except ImageReadError:
                return False
    return False


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read a folder of such folders; its objects are of one class.

    Raises:
        DataError: there is no such folder.
    """
    data = Annotated(class_names=[_CLASS])
    folders = _image_folders(path)
    if not folders:
        raise DataError(f"{path} holds no masks of single objects: it needs {LOOKED_FOR}.")
    for folder in folders:
        image = list_tree(folder / "images", IMAGE_SUFFIXES)[0]
        size = data.read_size(image)
        if size is None:
            continue
        annotations = []
        for file in list_tree(folder / "masks", IMAGE_SUFFIXES):
            try:
                annotations.append(mask_annotation(_read_mask(file, size, folder), 0))
            except ValueError as error:
                data.problems.append(str(error))
        data.add_image(split_of(image, path), image, size, annotations)
    data.notes.append(f"the masks name no class: all objects are of the class {_CLASS!r}.")
    return data


def _image_folders(path: Path) -> list[Path]:
    """Folders with one image in `images` and a folder `masks`, unless its only file has the name of the image."""
    found = []
    for folder, folders, _ in walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "images" in folders and "masks" in folders:
            here = Path(folder)
            images, masks = (list_tree(here / name, IMAGE_SUFFIXES) for name in ("images", "masks"))
            is_label_image = [file.stem for file in masks] == [file.stem for file in images]
            if len(images) == 1 and not is_label_image:
                found.append(here)
            folders.clear()
    return found


def _read_mask(file: Path, size: tuple[int, int], folder: Path) -> np.ndarray:
    """The mask of a file, bool [H, W]."""
    if file.parent != folder / "masks":
        raise ValueError(f"{file}: a folder within masks is not understood. Put the file into {folder / 'masks'}.")
    label_map, _ = read_instance_map(file)  # [H, W]
    if label_map.shape != size:
        raise ValueError(
            f"{file}: the mask is {label_map.shape[0]} x {label_map.shape[1]}, its image {size[0]} x {size[1]} "
            "(height x width). Both must have one size."
        )
    values = np.unique(label_map)
    values = values[values != 0]
    if len(values) != 1:
        what = "is empty" if len(values) == 0 else f"holds {len(values)} values besides 0, where one object has one"
        raise ValueError(f"{file}: the mask {what}. Write a file an object, or remove it.")
    return label_map != 0
