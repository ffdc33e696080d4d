"""Images that a training cannot take as they are: a single one, or large ones full of objects, cut into tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskrcnn_plus.apps.check_data.advice import is_large
from maskrcnn_plus.data.statistics import get_boxes

__all__ = ["choose_tile_side"]

_LARGEST, _SMALLEST = 1024, 256
_PARTS = 3  # along the longer side of a single image
_OBJECTS = 3  # that fit into a tile, side by side


def choose_tile_side(splits: Mapping[str, Sequence[dict[str, Any]]]) -> tuple[int | None, str]:
    """The longest side of the tiles that the images are to be cut into, in pixels, and why.

    A single image is cut into about nine, some of which can be validated on, if that leaves tiles of 256 pixels and of
    three large objects side by side. Images are too large where `tools/check_data.py` advises to cut them.

    Args:
        splits: dataset dicts by split.

    Returns:
        None where the images stay as they are.
    """
    records = [record for records in splits.values() for record in records]
    boxes = [get_boxes(record["annotations"]) for record in records if record["annotations"]]
    if not boxes:
        return None, ""
    boxes = np.concatenate(boxes)
    least = max(_SMALLEST, _OBJECTS * math.ceil(np.percentile((boxes[:, 2:] - boxes[:, :2]).max(axis=1), 95)))
    sizes = np.array([(record["height"], record["width"]) for record in records])
    large = is_large(sizes.prod(axis=1), np.array([len(record["annotations"]) for record in records]))
    if large.any():
        return max(_LARGEST, least), f"{large.sum()} images are large and full of objects"
    longest = int(sizes[0].max())
    if len(records) > 1 or longest <= least:
        return None, ""
    return min(max(math.ceil(longest / _PARTS), least), _LARGEST), "there is one image, to learn from and to judge by"
