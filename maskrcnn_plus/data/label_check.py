"""Label images that are none: masks of classes, lossy files, images whose background has a number.

A label image gives every object a number of its own. Each of these mistakes can be read without an error, and trains a
model of something else. What is measured of each image is judged over the data set, as real objects may be in pieces,
thin or large.

Shape shorthand: an image of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from maskrcnn_plus.errors import listed

_PIECES_OF = 24  # objects of an image whose pieces are counted, the largest
_NAMED = 3  # files that a warning names


def measure_labels(label_map: np.ndarray, annotations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What tells whether a label image is one.

    Args:
        label_map: [H, W] integers, 0 = background.
        annotations: its objects, as of `label_map_annotations`.

    Returns:
        Data for JSON: `objects`, their number; `counted` and `pieces`, how many of the largest were looked at and in
        how many pieces of some size they are; `thin`, how many objects have no pixel that is surrounded by their own;
        `values`, the numbers of the first; and of the largest object its number (`largest`), its `share` of the image
        and `frames`, whether it is on all four borders.
    """
    if not annotations:
        return {"objects": 0}
    by_area = sorted(annotations, key=lambda each: -each["area"])
    pieces = [_count_pieces(label_map, each) for each in by_area[:_PIECES_OF]]
    largest = by_area[0]
    borders = (label_map[0], label_map[-1], label_map[:, 0], label_map[:, -1])
    return {
        "objects": len(annotations),
        "counted": len(pieces),
        "pieces": sum(pieces),
        "thin": _count_thin(label_map, annotations),
        "values": [each["label_id"] for each in annotations[:4]],
        "largest": largest["label_id"],
        "share": round(largest["area"] / label_map.size, 3),
        "frames": all((border == largest["label_id"]).any() for border in borders),
    }


def _count_pieces(label_map: np.ndarray, annotation: dict[str, Any]) -> int:
    """Connected parts of an object, of 4 pixels and 2 % of it or more; touching at a corner is enough."""
    x0, y0, x1, y1 = map(int, annotation["bbox"])
    mask = (label_map[y0:y1, x0:x1] == annotation["label_id"]).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    return max(int((stats[1:, cv2.CC_STAT_AREA] >= max(4, 0.02 * annotation["area"])).sum()), 1)


def _count_thin(label_map: np.ndarray, annotations: Sequence[dict[str, Any]]) -> int:
    """Objects without a pixel whose four neighbours are of the object."""
    middle = label_map[1:-1, 1:-1]
    inner = middle > 0
    for neighbour in (label_map[:-2, 1:-1], label_map[2:, 1:-1], label_map[1:-1, :-2], label_map[1:-1, 2:]):
        inner &= neighbour == middle
    solid = set(np.unique(middle[inner]).tolist())
    return sum(each["label_id"] not in solid for each in annotations)


def label_warnings(measured: Mapping[str, dict[str, Any]]) -> list[str]:
    """Judge the label images of a data set.

    Args:
        measured: what `measure_labels` found, by the path of each label image.

    Returns:
        A sentence or more a kind of mistake, at most one of each kind.
    """
    with_objects = {path: each for path, each in measured.items() if each["objects"]}
    background = {path: each for path, each in with_objects.items() if each["frames"] and each["share"] >= 0.4}
    lossy = {path: each for path, each in with_objects.items() if _looks_lossy(each)}
    rest = {path: each for path, each in with_objects.items() if path not in background and path not in lossy}
    classes = _look_like_classes(rest)
    warnings = []
    if len(background) >= 0.2 * len(with_objects) and background:
        path, worst = max(background.items(), key=lambda item: item[1]["share"])
        inverted = worst["objects"] == 1
        warnings.append(
            f"{_some(background, measured)} look as if the background had a number: in {path} the value "
            f"{worst['largest']} covers {worst['share']:.0%} of the image and is on all its borders. It is taken for "
            "an object, as only 0 is background. "
            + ("Exchange 0 and this value, and give" if inverted else "Set it to 0, and give")
            + " every object a number of its own."
        )
    if lossy:
        path, worst = max(lossy.items(), key=lambda item: item[1]["thin"])
        warnings.append(
            f"{_some(lossy, measured)} look as if they had been saved with losses (JPEG), smoothed or resized with "
            f"interpolation: in {path} {worst['thin']} of {worst['objects']} objects are rims and specks without an "
            "inside. Write them anew from their source as PNG or TIFF, and resize with nearest neighbours."
        )
    if classes:
        path, worst = max(classes.items(), key=lambda item: item[1]["pieces"])
        values = ", ".join(map(str, worst["values"])) + (", ..." if worst["objects"] > len(worst["values"]) else "")
        one = worst["objects"] == 1
        warnings.append(
            f"{_some(classes, measured)} look like masks of classes (foreground and background), not of objects: in "
            f"{path} the value{'' if one else 's'} {values} make{'s' if one else ''} {worst['objects']} "
            f"object{'' if one else 's'} in {worst['pieces']} separate pieces. Give every object a number of its own; "
            f"connected components would make {worst['pieces']} objects, touching ones together: "
            "scipy.ndimage.label(mask > 0)[0].astype('uint16'), saved as PNG."
        )
    return warnings


def _looks_lossy(each: dict[str, Any]) -> bool:
    """Whether most objects are specks and rims, of which real ones have few."""
    return each["objects"] >= 20 and each["thin"] >= 0.5 * each["objects"]


def _look_like_classes(measured: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The images with many pieces an object, if the whole data set is such or in single ones there is no doubt."""
    pieces, counted = (sum(each[key] for each in measured.values()) for key in ("pieces", "counted"))
    if counted and pieces >= 1.5 * counted:
        return {path: each for path, each in measured.items() if each["pieces"] > each["counted"]}
    return {path: each for path, each in measured.items() if each["pieces"] >= max(8, 4 * each["counted"])}


def _some(chosen: Mapping[str, Any], of: Mapping[str, Any]) -> str:
    """Name files, and how many there are."""
    return f"{len(chosen)} of {len(of)} label images ({listed(list(chosen), _NAMED)})"
