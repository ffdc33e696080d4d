"""Pictures whose pixels name objects: label images, palettes, colours as ids; read, and turned into annotations.

Shape shorthand: H, W image height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from maskrcnn_plus.data.formats.label_maps import label_map_annotations
from maskrcnn_plus.data.images import ImageReadError, decode, reading
from maskrcnn_plus.masks.label_map import label_map_to_rles

_CODE = np.array([1 << 32, 1 << 16, 1])
_TOP = 2**31
_LOSSY = b"\xff\xd8\xff"  # how a JPEG begins


def read_instance_map(path: Path) -> tuple[np.ndarray, bool]:
    """Read a picture in which each object has a value, a palette index or a colour of its own.

    Args:
        path: PNG, TIFF or another file without losses.

    Returns:
        int32 [H, W], 0 = background (of colours: black), and whether the values are those that `read_label_map` gives:
        colours are numbered instead.

    Raises:
        ImageReadError: the file cannot be read, is a JPEG, or holds fractions or negative values.
    """
    values, kind = read_values(path)
    return (number_colours(values) if kind == "colour" else values.astype(np.int32)), kind == "stored"


def read_values(path: Path) -> tuple[np.ndarray, str]:
    """Read the values or colours of a picture that names objects or classes.

    Returns:
        int64 [H, W], and what they are: "stored", as `read_label_map` gives them; "value", written as fractions or
        three times; "colour", see `colour_code`.

    Raises:
        ImageReadError: as of `read_instance_map`.
    """
    name = str(path)
    with reading(name) as local_path:
        with open(local_path, "rb") as file:
            lossy = file.read(3) == _LOSSY
        decoded = None if lossy else decode(name, local_path, as_labels=True)
    if lossy:
        raise ImageReadError(
            f"{path}: JPEG changes the values at the edges of objects, so that nobody can tell them apart. Export the "
            "label images again as PNG or TIFF."
        )
    pixels, kind = np.delete(decoded.pixels, decoded.alpha, axis=2), "stored"  # [H, W, C]
    if pixels.dtype.kind == "f":
        if not (np.isfinite(pixels).all() and (pixels == np.rint(pixels)).all() and np.abs(pixels).max() < _TOP):
            raise ImageReadError(f"{path}: a label image must hold integers. Export it as 16-bit PNG or TIFF.")
        kind = "value"
    if pixels.shape[2] not in (1, 3):
        raise ImageReadError(f"{path}: {pixels.shape[2]} channels are no label image. Export one channel an image.")
    if pixels.min() < 0 or pixels.max() >= _TOP:
        raise ImageReadError(f"{path}: labels must be in 0..2147483647, this file has {pixels.min()}..{pixels.max()}.")
    pixels = pixels.astype(np.int64)
    if decoded.pixels.shape[2] > 1:
        kind = "value" if (pixels == pixels[:, :, :1]).all() else "colour"
        if kind == "colour" and decoded.pixels.dtype != np.uint8:
            raise ImageReadError(
                f"{path}: three channels of {decoded.pixels.dtype} are label images of their own, not colours. Export "
                "one channel an image."
            )
    return (pixels @ _CODE if kind == "colour" else pixels[:, :, 0]), kind


def read_colours(path: Path) -> np.ndarray | None:
    """Colours of a picture, also of a palette, int64 [H, W] of `colour_code`; None of a grey one.

    Raises:
        ImageReadError: the file cannot be read.
    """
    with reading(str(path)) as local_path:
        decoded = decode(str(path), local_path)
    pixels = np.delete(decoded.pixels, decoded.alpha, axis=2)
    return pixels.astype(np.int64) @ _CODE if pixels.shape[2] == 3 else None


def colour_code(red: int, green: int, blue: int) -> int:
    """The number that stands for a colour."""
    return (red << 32) + (green << 16) + blue


def number_colours(codes: np.ndarray) -> np.ndarray:
    """Number colours from 1 on, black is 0; int32 of the same shape."""
    values, numbers = np.unique(codes, return_inverse=True)
    return (np.arange(len(values)) + (values[0] != 0)).astype(np.int32)[numbers].reshape(codes.shape)


def split_components(label_map: np.ndarray) -> np.ndarray:
    """Give each piece of a value, whose pixels hang together by their edges, a number of its own.

    Args:
        label_map: int [H, W], 0 = background.

    Returns:
        int32 [H, W].
    """
    found, count = np.zeros(label_map.shape, dtype=np.int32), 0
    values, dense = np.unique(np.append(label_map.reshape(-1), 0), return_inverse=True)
    dense = dense[:-1].reshape(label_map.shape)  # 0 = background, as no value is below
    for index, window in enumerate(ndimage.find_objects(dense, max_label=len(values) - 1), start=1):
        if window is not None:
            pieces, number = ndimage.label(dense[window] == index)
            found[window][pieces > 0] = pieces[pieces > 0] + count
            count += number
    return found


def rle_annotations(label_map: np.ndarray, categories: Mapping[int, Any] | None = None) -> list[dict[str, Any]]:
    """The objects of a label image with their masks as RLE.

    Args:
        label_map: int [H, W], 0 = background.
        categories: `category_id` of each value; None makes all objects category 0.
    """
    objects = label_map_annotations(label_map, categories)
    rles = label_map_to_rles(label_map, [each.pop("label_id") for each in objects]) if objects else []
    return [{"segmentation": rle, **each} for each, rle in zip(objects, rles, strict=True)]
