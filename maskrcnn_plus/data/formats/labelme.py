"""LabelMe: a JSON file an image, {"imagePath": ..., "shapes": [{"label", "shape_type", "points", "group_id"}, ...]}."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.annotated import Annotated, ImageFinder, polygon_annotation
from maskrcnn_plus.data.formats.files import list_tree, peek_json, read_json, split_of
from maskrcnn_plus.data.formats.masks import mask_annotation
from maskrcnn_plus.data.formats.options import ReadOptions
from maskrcnn_plus.masks.polygons import polygons_to_mask

LOOKED_FOR = 'JSON files with "shapes" and "imagePath"'

_CIRCLE_POINTS = 64


def matches(path: Path) -> bool:
    """Whether a folder, or a JSON file, is LabelMe's."""
    return any(_is_labelme(peek_json(file)) for file in list_tree(path, (".json",)))


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read all JSON files of a folder that are LabelMe's, or one.

    Raises:
        DataError: a JSON file cannot be read, or none is LabelMe's.
    """
    data = Annotated()
    root = path if path.is_dir() else path.parent
    finder, used = ImageFinder(root), set()
    for file in list_tree(path, (".json",)):
        content = read_json(file)
        if not _is_labelme(content):
            data.notes.append(f"{file} has no shapes and was left out.")
            continue
        image = finder.find(str(content.get("imagePath") or ""), file)
        if image is None:
            data.problems.append(
                f"{file}: its image {content.get('imagePath')!r} is not there. Put it beside the file."
            )
            continue
        if image.resolve() in used:
            data.problems.append(f"{file}: another file annotates {image} too. Keep one of them.")
            continue
        used.add(image.resolve())
        size = data.read_size(image)
        if size is None:
            continue
        stated = content.get("imageHeight"), content.get("imageWidth")
        if None not in stated and stated != size:
            data.problems.append(
                f"{file}: it says {stated[0]} high x {stated[1]} wide, the image {image} is {size[0]} x {size[1]}. "
                "Annotate the image as it is, or bring back the one that was annotated."
            )
            continue
        data.add_image(split_of(file, root), image, size, _read_shapes(content["shapes"], file, size, data))
    if not used and not data.problems:
        raise DataError(f"{path} holds no LabelMe annotation: it needs {LOOKED_FOR}.")
    others = [image for image in finder.files if image.resolve() not in used]
    if path.is_dir() and others:
        data.notes.append(f"{len(others)} images have no JSON file and were left out, {others[0]} among them.")
    return data


def _is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def _read_shapes(shapes: list[Any], file: Path, size: tuple[int, int], data: Annotated) -> list[dict[str, Any]]:
    """Annotations of an image of `size` (H, W); shapes of one label and group_id are parts of one object."""
    groups: dict[Any, list[list[float] | np.ndarray]] = {}
    for number, shape in enumerate(shapes):
        try:
            label, group, part = _read_shape(shape, size)
        except (ValueError, TypeError, KeyError, OSError) as error:
            data.problems.append(f"{file}, shape {number}: {error}")
            continue
        key = (label, "alone", number) if group is None else (label, "group", str(group))
        groups.setdefault(key, []).append(part)
    annotations = []
    for (label, *_), parts in groups.items():
        category = data.category(label)
        if all(isinstance(part, list) for part in parts):
            annotations.append(polygon_annotation(parts, category))
            continue
        mask = np.zeros(size, dtype=bool)  # [H, W]
        for part in parts:
            mask |= polygons_to_mask([part], *size).astype(bool) if isinstance(part, list) else part
        annotations.append(mask_annotation(mask, category))
    return annotations


def _read_shape(shape: Any, size: tuple[int, int]) -> tuple[str, Any, list[float] | np.ndarray]:
    """Label, group and polygon [x0, y0, x1, y1, ...] or mask bool [H, W] of a shape."""
    if not isinstance(shape, dict) or not str(shape.get("label") or "").strip():
        raise ValueError("it has no label. Give it one.")
    kind = shape.get("shape_type") or "polygon"
    points = np.asarray(shape.get("points", []), dtype=np.float64)  # [P, 2], x and y
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"its points are {str(shape.get('points'))[:60]}; they must be [[x, y], ...].")
    needed = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2}.get(kind)
    if needed is None:
        raise ValueError(f"a {kind} has no area. Draw a polygon, rectangle, circle or mask, or remove it.")
    if len(points) < needed:
        raise ValueError(f"a {kind} of {len(points)} points: {needed} or more are needed. Redraw or remove it.")
    if kind == "mask":
        part = _read_mask(shape.get("mask"), points, size)
    elif kind == "circle":
        angles = np.arange(_CIRCLE_POINTS) * (2 * np.pi / _CIRCLE_POINTS)
        radius = np.hypot(*(points[1] - points[0]))
        part = (points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)).reshape(-1).tolist()
    elif kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points.tolist()
        part = [x0, y0, x1, y0, x1, y1, x0, y1]
    else:
        part = points.reshape(-1).tolist()
    return str(shape["label"]), shape.get("group_id"), part


def _read_mask(text: Any, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Mask bool [H, W] of a PNG in base64 whose upper left pixel is the first point."""
    if not isinstance(text, str):
        raise ValueError("a mask without its picture. Redraw or remove it.")
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as picture:
            if picture.width > size[1] or picture.height > size[0]:
                raise ValueError(f"its mask of {picture.height} x {picture.width} is larger than the image.")
            part = np.asarray(picture.convert("L")) > 0  # [h, w]
    except (binascii.Error, OSError, SyntaxError) as error:
        raise ValueError(f"its mask is no PNG in base64 ({error}). Redraw or remove it.") from error
    x, y = (int(value) for value in points[0])
    if x < 0 or y < 0 or y + part.shape[0] > size[0] or x + part.shape[1] > size[1]:
        raise ValueError(f"its mask of {part.shape[0]} x {part.shape[1]} at x {x}, y {y} is not within the image.")
    if not part.any():
        raise ValueError("its mask is empty. Redraw or remove it.")
    mask = np.zeros(size, dtype=bool)
    mask[y : y + part.shape[0], x : x + part.shape[1]] = part
    return mask
