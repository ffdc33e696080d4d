"""CVAT for images 1.1: XML, <annotations><image name width height><polygon|box|ellipse|mask label .../></image>."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, parse

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.annotated import Annotated, ImageFinder, polygon_annotation
from maskrcnn_plus.data.formats.files import list_tree, split_of
from maskrcnn_plus.data.formats.masks import mask_annotation
from maskrcnn_plus.data.formats.options import ReadOptions

LOOKED_FOR = "XML files of CVAT (<annotations> with <image> or <track>)"

_ELLIPSE_POINTS = 64


def matches(path: Path) -> bool:
    """Whether a folder, or an XML file, is CVAT's."""
    for file in list_tree(path, (".xml",)):
        try:
            if _load(file) is not None:
                return True
        except DataError:
            continue
    return False


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read all XML files of a folder that are CVAT's, or one.

    Raises:
        DataError: a file cannot be read, is of a video, or none is CVAT's.
    """
    data = Annotated()
    root = path if path.is_dir() else path.parent
    finder, used = ImageFinder(root), set()
    for file in list_tree(path, (".xml",)):
        tree = _load(file)
        if tree is None:
            data.notes.append(f"{file} is not CVAT's and was left out.")
            continue
        if tree.find("track") is not None:
            raise DataError(f"{file} has tracks of a video. Export it as 'CVAT for images 1.1'.")
        for element in tree.iter("image"):
            name = element.get("name", "")
            image = finder.find(name, file.parent / "images" / "x") or finder.find(name, file)
            where = f"{file}, image {name!r}"
            if image is None or image.resolve() in used:
                data.problems.append(f"{where}: " + ("it is not there." if image is None else "it is listed twice."))
                continue
            used.add(image.resolve())
            size = data.read_size(image)
            if size is None:
                continue
            stated = element.get("height"), element.get("width")
            if stated != (str(size[0]), str(size[1])):
                data.problems.append(f"{where}: it says {stated[0]} x {stated[1]}, the file is {size[0]} x {size[1]}.")
                continue
            annotations = []
            for number, shape in enumerate(element):
                try:
                    annotations.append(_read_shape(shape, size, data))
                except (ValueError, OverflowError) as error:
                    data.problems.append(f"{where}, shape {number}: {error}")
            data.add_image(split_of(image, root), image, size, annotations)
    if not used and not data.problems:
        raise DataError(f"{path} holds no image of CVAT: it needs {LOOKED_FOR}.")
    return data


def _load(file: Path) -> Any:
    """Root of an XML file of CVAT, None where it is another one."""
    try:
        root = parse(file).getroot()
    except (ParseError, DefusedXmlException, OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as XML ({error}). Export it again.") from error
    sound = root.tag == "annotations" and (root.find("image") is not None or root.find("track") is not None)
    return root if sound else None


def _read_shape(shape: Any, size: tuple[int, int], data: Annotated) -> dict[str, Any]:
    """Annotation of a shape in an image of `size` (H, W)."""
    label = shape.get("label")
    if not label or shape.tag not in ("polygon", "box", "ellipse", "mask"):
        raise ValueError(f"a {shape.tag} has no mask of a class. Draw a polygon, box, ellipse or mask, or remove it.")
    if float(shape.get("rotation", 0)) != 0:
        raise ValueError(f"a rotated {shape.tag} is not understood. Draw it as a polygon.")
    if shape.tag == "mask":
        mask = _read_mask(shape, size)
        return mask_annotation(mask, data.category(label))
    if shape.tag == "polygon":
        points = [float(value) for pair in shape.get("points", "").split(";") for value in pair.split(",")]
    elif shape.tag == "box":
        x0, y0, x1, y1 = _numbers(shape, "xtl", "ytl", "xbr", "ybr")
        points = [x0, y0, x1, y0, x1, y1, x0, y1]
    else:
        x, y, rx, ry = _numbers(shape, "cx", "cy", "rx", "ry")
        angles = np.arange(_ELLIPSE_POINTS) * (2 * np.pi / _ELLIPSE_POINTS)
        points = np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1).reshape(-1).tolist()
    if len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
        raise ValueError("a polygon needs x and y of 3 points or more. Redraw or remove it.")
    return polygon_annotation([points], data.category(label))


def _numbers(shape: Any, *names: str) -> list[float]:
    return [float(shape.get(name, "")) for name in names]


def _read_mask(shape: Any, size: tuple[int, int]) -> np.ndarray:
    """Mask bool [H, W] of runs, background first, of the row-major pixels of a box."""
    x, y, width, height = (int(value) for value in _numbers(shape, "left", "top", "width", "height"))
    if min(x, y) < 0 or min(width, height) < 1 or x + width > size[1] or y + height > size[0]:
        raise ValueError(f"its mask of {height} x {width} at x {x}, y {y} is not within the image.")
    runs = [int(value) for value in shape.get("rle", "").split(",")]
    if min(runs) < 0 or sum(runs) != height * width or not any(runs[1::2]):
        raise ValueError(f"its runs are empty or do not add up to {height} x {width} pixels. Redraw or remove it.")
    mask = np.zeros(size, dtype=bool)
    part = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)  # [h * w] -> [h, w]
    mask[y : y + height, x : x + width] = part
    return mask
