"""Detectron2's types of ground-truth masks behind `GroundTruthMasks`, where they enter this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, PolygonMasks
from torch import Tensor

from maskrcnn_plus.masks.bit_crops import IndexedBitMasks
from maskrcnn_plus.masks.ground_truth import GroundTruthMasks, get_pixel_windows
from maskrcnn_plus.masks.polygons import polygons_to_bitmasks, polygons_to_mask

_LARGEST = 2**15  # pixels of a side of what is drawn of a polygon


def adapt_masks(masks: Any, image_size: tuple[int, int] | None = None) -> Any:
    """Give Detectron2's types the interface of this package.

    Args:
        masks: `BitMasks`, `PolygonMasks`, a `GroundTruthMasks`, or a type of somebody else.
        image_size: (H, W) of their image, which polygons need to become bitmaps.

    Returns:
        A `GroundTruthMasks` with the same masks; somebody else's type as it is, which has the methods that it has.
    """
    if isinstance(masks, GroundTruthMasks):
        return masks
    if isinstance(masks, BitMasks):
        return IndexedBitMasks(masks.tensor)
    return PolygonInstanceMasks(masks, image_size) if isinstance(masks, PolygonMasks) else masks


class PolygonInstanceMasks(PolygonMasks, GroundTruthMasks):
    """`PolygonMasks` of an image. Areas and bitmaps are of pixels by COCO's rule; the rest is Detectron2's."""

    def __init__(self, polygons: PolygonMasks | list[list[Any]], image_size: tuple[int, int] | None = None) -> None:
        """Keep references to both.

        Args:
            polygons: R objects, of which Detectron2's constructor would make copies; or what that takes.
            image_size: (H, W), for `to_bitmasks`.
        """
        self.polygons = (polygons if isinstance(polygons, PolygonMasks) else PolygonMasks(polygons)).polygons
        self.image_size = image_size

    def __getitem__(self, item: int | slice | list[int] | Tensor) -> PolygonInstanceMasks:
        """Select as `PolygonMasks` do."""
        return PolygonInstanceMasks(super().__getitem__(item), self.image_size)

    @staticmethod
    def cat(masks_list: Sequence[PolygonMasks]) -> PolygonInstanceMasks:
        """Join masks of one image."""
        joined = PolygonMasks([polygons for masks in masks_list for polygons in masks.polygons])
        return PolygonInstanceMasks(joined, masks_list[0].image_size)

    def area(self) -> Tensor:
        """Return the number of pixels of each object, those beyond the image too, int64 [R]."""
        return torch.tensor([int(_draw(polygons)[0].sum()) for polygons in self.polygons], dtype=torch.int64)

    def areas_in_boxes(self, boxes: Tensor) -> Tensor:
        """Count the pixels of each mask and those of them in its box; see `GroundTruthMasks`."""
        areas = np.zeros((2, len(self)), dtype=np.float32)
        for index, window in enumerate(get_pixel_windows(boxes).tolist()):
            mask, corner = _draw(self.polygons[index])
            x0, y0, x1, y1 = np.clip(np.array(window) - np.tile(corner, 2), 0, None).astype(int)
            areas[:, index] = mask.sum(), mask[y0:y1, x0:x1].sum()
        return torch.from_numpy(areas).to(boxes.device)

    def to_bitmasks(self) -> BitMasks:
        """Draw the objects, bool [R, H, W]."""
        return polygons_to_bitmasks(self, *self.image_size)


def _draw(polygons: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of an object, bool [h, w] around it alone, and the place (x, y) of the first in the image."""
    if not polygons:
        return np.zeros((0, 0), dtype=bool), np.zeros(2)
    points = [np.asarray(polygon).reshape(-1, 2) for polygon in polygons]
    corner = np.floor(np.concatenate(points).min(axis=0))  # x, y
    size = np.ceil(np.concatenate(points).max(axis=0) - corner) + 1  # width, height
    if not (size <= _LARGEST).all():
        raise ValueError(f"A ground-truth polygon of {size} pixels is larger than {_LARGEST}, or not finite.")
    width, height = size.astype(int).tolist()
    return polygons_to_mask([each - corner for each in points], height, width), corner
