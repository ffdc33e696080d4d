"""Label Studio's JSON: a list of tasks {"data": {"image"}, "annotations": [{"result": [...]}]}.

A result has `original_width`, `original_height`, `from_name` (which control it was drawn with) and a `value` in per
cent of these: polygonlabels, rectanglelabels and ellipselabels with `rotation` in degrees, or brushlabels with their
`rle`, or bitmasklabels with a PNG.

Its short form (JSON-MIN) is a list of {"id", "image", CONTROL: [value, ...]}, whose values state the size themselves.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_plus.data.formats.annotated import Annotated, ImageFinder
from maskrcnn_plus.data.formats.brush import decode_bitmask, decode_brush
from maskrcnn_plus.data.formats.files import list_tree, peek_json, read_json, split_of
from maskrcnn_plus.data.formats.options import ReadOptions
from maskrcnn_plus.data.formats.shapes import (
    NoAreaError,
    NoClassError,
    Shape,
    as_points,
    check_area,
    close_line,
    ellipse,
    mask_rle,
    rectangle,
    turn,
)

LOOKED_FOR = 'JSON of Label Studio (a list of tasks with "data" and "annotations"), or JSON-MIN'
OPTIONS = ("attribute",)

_GEOMETRY = {"points", "rle", "imageDataURL", "radiusX", "radiusY", "x", "y", "width", "height", "rotation"}


def matches(path: Path) -> bool:
    """Whether a folder, or a JSON file, holds tasks of Label Studio."""
    return any(_is_tasks(peek_json(file)) for file in list_tree(path, (".json",)))


def read(path: Path, options: ReadOptions) -> Annotated:
    """Read all JSON files of a folder that are Label Studio's, or one.

    Raises:
        DataError: no file can be read that is Label Studio's.
    """
    data = Annotated()
    root = path if path.is_dir() else path.parent
    finder = ImageFinder(root, data)
    for file, content in data.contents(path, (".json",), read_json, _is_tasks, LOOKED_FOR):
        for number, task in enumerate([content] if isinstance(content, dict) else content):
            where = f"{file}, task {task.get('id', number) if isinstance(task, dict) else number}"
            try:
                _read_task(_expand(task), where, file, root, finder, options, data)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                data.problems.append(f"{where}: it is no task of Label Studio ({error}).")
    return data


def _is_tasks(content: Any) -> bool:
    first = content[0] if isinstance(content, list) and content else content
    is_full = (
        isinstance(first, dict)
        and isinstance(first.get("data"), dict)
        and bool({"annotations", "completions"} & {*first})
    )
    return is_full or (isinstance(content, list) and any(map(_is_short, content)))


def _is_short(task: Any) -> bool:
    """Whether a task is of the short form; on its image there may be nothing."""
    if not isinstance(task, dict) or "data" in task:
        return False
    return {"annotator", "annotation_id"} <= task.keys() or bool(_controls(task))


def _controls(task: dict[str, Any]) -> dict[str, list[Any]]:
    """What was drawn with each control on an image, of the short form."""
    return {
        key: values
        for key, values in task.items()
        if isinstance(values, list) and values and all(isinstance(v, dict) and "original_width" in v for v in values)
    }


def _expand(task: dict[str, Any]) -> dict[str, Any]:
    """A task of the short form in the long one; others as they are."""
    if not _is_short(task):
        return task
    results = [
        {**value, "id": f"{control} {number}", "from_name": control, "value": value}
        for control, values in _controls(task).items()
        for number, value in enumerate(values)
    ]
    return {"id": task.get("id"), "data": task, "annotations": [{"result": results}]}


def _read_task(
    task: dict[str, Any],
    where: str,
    file: Path,
    root: Path,
    finder: ImageFinder,
    options: ReadOptions,
    data: Annotated,
) -> None:
    name = _image_name(task["data"])
    made = task.get("annotations", task.get("completions")) or []
    made = [each for each in made if not each.get("was_cancelled") and not each.get("skipped")]
    if not made:
        data.assume("tasks that nobody has annotated, which were left out", where)
        return
    if len(made) > 1:
        data.assume("tasks with several annotations, of which the true (ground_truth) or last one was taken", where)
    image = finder.find(name, file)
    if image is None or not data.is_new(image, where):
        return
    results = next((each for each in made if each.get("ground_truth")), made[-1])["result"]
    stated = next((size for each in results if (size := _stated_size(each)) is not None), None)
    size = data.drawn_size(image, stated, where)
    if size is not None:
        labels = _labels(results, options.attribute)
        shapes = data.read_shapes(
            _once(results), where, partial(_read_shape, size=size, labels=labels, options=options, data=data)
        )
        data.add_shapes(split_of(image, root), image, shapes, where, stated)


def _image_name(content: dict[str, Any]) -> str:
    """The image of a task, whatever its key."""
    texts = {str(key): value for key, value in content.items() if isinstance(value, str) and value.strip()}
    chosen = next((key for key in ("image", "img", "picture", "ocr") if key in texts), None)
    chosen = chosen or next((key for key, value in texts.items() if "/" in value or "." in value), None)
    if chosen is None:
        raise ValueError("its data name no image")
    return texts[chosen]


def _stated_size(result: dict[str, Any]) -> tuple[int, int] | None:
    height, width = result.get("original_height"), result.get("original_width")
    if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
        return height, width
    return None


def _once(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results, of those that give the geometry of one region the first; the controls of a region each have one."""
    seen: set[str | None] = set()
    kept = []
    for result in results:
        value = result.get("value") if isinstance(result, dict) else None
        geometry = {key: value[key] for key in sorted(_GEOMETRY & value.keys())} if isinstance(value, dict) else {}
        known = f"{result['id']} {result.get('image_rotation')} {geometry}" if geometry and "id" in result else None
        if known is None or known not in seen:
            kept.append(result)
        seen.add(known)
    return kept


def _labels(results: list[dict[str, Any]], attribute: str | None) -> dict[str, list[str]]:
    """Labels of each region by id: of all controls that label, or of the one that is asked for."""
    found: dict[str, list[str]] = defaultdict(list)
    for result in results:
        value = result.get("value")
        if not isinstance(value, dict) or attribute not in (None, result.get("from_name")):
            continue
        for key, names in value.items():
            is_label = key.endswith("labels") or (attribute is not None and key in ("choices", "taxonomy", "text"))
            if is_label and isinstance(names, list):
                found[str(result.get("id"))] += [str(name) for name in names if str(name).strip()]
    return found


def _read_shape(
    result: dict[str, Any],
    place: str,
    size: tuple[int, int],
    labels: dict[str, list[str]],
    options: ReadOptions,
    data: Annotated,
) -> Shape | None:
    """A result in pixels of an image of `size` (H, W)."""
    if result.get("type") == "relation":  # between two regions
        return None
    value = result["value"]
    kind = next((kind for kind in ("points", "rle", "imageDataURL", "radiusX", "width", "x") if kind in value), None)
    if kind is None:
        if "vertices" in value:
            raise ValueError("a vector is not understood. Draw it as a polygon or with a brush, or remove it.")
        if _stated_size(result) is None and result.get("type") not in (None, "relation", "labels"):
            raise NoAreaError("a tag of the whole image")
        return None  # the label of a region that is a result of its own
    if kind == "x" or "keypointlabels" in value or str(result.get("type")).startswith("keypoint"):
        raise NoAreaError("a point")
    if result.get("image_rotation"):
        raise ValueError("its image was turned in Label Studio, which is not understood. Turn it back there.")
    names = list(dict.fromkeys(labels.get(str(result.get("id")), [])))
    if not names:
        if options.attribute is None:
            raise NoClassError("an object without label")
        data.assume(f"objects without {options.attribute!r}, left out", place)  # of another control
        return None
    if len(names) > 1:
        data.assume("objects with several labels, of which the first was taken", place)
    shape = Shape(names[0], place)
    if kind == "rle":
        shape.rle = mask_rle(decode_brush(value["rle"], *size), 0, 0, size)
        return shape
    if kind == "imageDataURL":
        shape.rle = mask_rle(decode_bitmask(value["imageDataURL"], *size), 0, 0, size)
        return shape
    scale = np.array(size[::-1]) / 100
    degrees = float(value.get("rotation") or 0)
    if kind == "points":
        points = as_points(value["points"]) * scale
        shape.is_line = value.get("closed") is False
        shape.polygons = [close_line(points) if shape.is_line else check_area(points)]
    elif kind == "radiusX":
        x, y, rx, ry = _numbers(value, scale, "x", "y", "radiusX", "radiusY")
        shape.polygons = [check_area(ellipse(x, y, rx, ry, degrees))]
    else:
        x, y, width, height = _numbers(value, scale, "x", "y", "width", "height")
        shape.polygons, shape.is_box = [check_area(turn(rectangle(x, y, x + width, y + height), degrees, (x, y)))], True
    return shape


def _numbers(value: dict[str, Any], scale: np.ndarray, *names: str) -> list[float]:
    return (as_points([float(value[name]) for name in names]) * scale).reshape(-1).tolist()
