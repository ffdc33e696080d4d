"""What the annotations of a whole data set have in common that one alone does not tell: the likely cause of errors.

Shape shorthand: N annotations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from maskrcnn_plus.data.annotations import MIN_BOX_IOU, box_ious, mask_box, normalize_segmentation, read_box

_BEYOND = 1.15  # times the width or height of an image, from which on an annotation is not only a little beyond it
_MANY = 0.5  # share of the images or annotations from which on something has a common cause
_ENOUGH_IMAGES, _ENOUGH_ANNOTATIONS = 10, 100  # to say that places where nothing is are empty by no chance


def scale_pattern(extents: np.ndarray, limits: np.ndarray, images: np.ndarray) -> str | None:
    """Whether coordinates are those of larger or smaller images.

    Args:
        extents: xyxy of the N masks or boxes as annotated, float64 [N, 4]; NaN where not known.
        limits: width and height of their images, [N, 2].
        images: number of the image of each, rising, [N].

    Returns:
        One or two sentences, or None.
    """
    known = np.isfinite(extents).all(axis=1)
    if not known.any():
        return None
    images, reach = images[known], (extents[known, 2:] / limits[known])  # [N, 2], right and lower ends
    first = np.flatnonzero(np.diff(images, prepend=-1))
    furthest = np.maximum.reduceat(reach.max(axis=1), first)  # of each image
    beyond = int((furthest > _BEYOND).sum())
    if beyond >= _MANY * len(first) and beyond > 1:
        factor = np.percentile(furthest[furthest > _BEYOND], 90)
        return (
            f"in {beyond} of {len(first)} images annotations reach beyond the image, up to about {factor:.1f} times "
            "its width or height: they belong to larger images. Were the images made smaller after the annotation? "
            f"Use the original images, or divide all coordinates by the factor (about {factor:.1f})."
        )
    if reach.max() <= 1 / 64:  # less than a pixel or two of most images
        return None
    wide, high = reach.max(axis=0).tolist()
    if max(wide, high) < 0.6 and len(first) >= _ENOUGH_IMAGES and len(reach) >= _ENOUGH_ANNOTATIONS:
        return (
            f"all {len(reach)} annotations of {len(first)} images lie in the left {wide:.0%} and the upper {high:.0%} "
            "of their images: they seem to belong to smaller images. Were the images magnified after they were "
            "annotated? If so, multiply all coordinates by the factor."
        )
    return None


def box_pattern(entries: Sequence[tuple[dict[str, Any], tuple[int, int]]], total: int) -> str | None:
    """What boxes that do not fit their masks hold instead.

    Args:
        entries: annotations with such boxes, at least one, and (height, width) of their images.
        total: number of annotations with masks and boxes.

    Returns:
        A sentence, or None where no other reading fits most of them.
    """
    agree: Counter[str] = Counter()
    chosen = entries[:: max(len(entries) // 500, 1)]
    for annotation, size in chosen:
        box, _ = read_box(annotation)
        mask = mask_box(normalize_segmentation(annotation["segmentation"], size)[0], size)
        sized, centred = np.append(box[:2], box[:2] + box[2:]), np.append(box[:2] - box[2:] / 2, box[:2] + box[2:] / 2)
        sides = np.tile([size[1], size[0]], 2)
        readings = {
            "the corners x0, y0, x1, y1": box,
            "x, y, width, height": sized,
            "the centre and width, height": centred,
            "the centre and width, height as parts of the image": centred * sides,
            "x, y, width, height as parts of the image": sized * sides,
        }
        for name, read in readings.items():
            agree[name] += bool(box_ious(read, mask) >= (1 + MIN_BOX_IOU) / 2)
    best = max(agree, key=agree.get)
    if agree[best] < _MANY * len(chosen):
        return None
    stated = BoxMode(entries[0][0]["bbox_mode"]).name
    return (
        f"{len(entries)} of {total} boxes, which are taken for {stated}, do not fit their masks; read as {best} they "
        "do. The masks count; write the boxes anew for other programs."
    )
