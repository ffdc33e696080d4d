"""What mask scoring learns from (Huang et al., "Mask Scoring R-CNN", 2019, Sec. 3.2).

That is the IoU of a predicted mask, which ends at its RoI, with the whole object, which may not.

Shorthand: R RoIs of all images, R_i of image i, S x S predicted mask, [H, W] image.
"""

from __future__ import annotations

import numpy as np
import torch
from detectron2.structures import BitMasks, PolygonMasks
from torch import Tensor

from maskrcnn_plus.masks import chunks
from maskrcnn_plus.masks.bit_crops import IndexedBitMasks
from maskrcnn_plus.masks.label_masks import LabelMapMasks
from maskrcnn_plus.masks.polygons import polygons_to_mask
from maskrcnn_plus.masks.soft_masks import SoftMasks

_LARGEST = 2**15  # pixels of a side of what is drawn of a polygon


@torch.no_grad()
def mask_iou_targets(pred_masks: Tensor, gt_masks: Tensor, areas: Tensor, areas_inside: Tensor) -> Tensor:
    """IoU of predicted masks, cut by their RoIs, with whole objects.

    Areas are counted in cells of the RoI. That of an object is the one inside the RoI divided by the part of its
    pixels that are there.

    Args:
        pred_masks, gt_masks: bool [R, S, S], both cut by the RoI.
        areas, areas_inside: [R], pixels of each object and those of them inside its RoI.

    Returns:
        [R] of the type of `areas`, 0 where nothing intersects.
    """
    predicted = pred_masks.sum(dim=(1, 2)).to(areas.dtype)
    inside = gt_masks.sum(dim=(1, 2)).to(areas.dtype)
    intersection = (pred_masks & gt_masks).sum(dim=(1, 2)).to(areas.dtype)
    # A RoI between two pixel centres has cells of the object, but none of its pixels.
    whole = inside * areas.clamp(min=1) / areas_inside.clamp(min=1)
    return intersection / (predicted + whole - intersection).clamp(min=1)


@torch.no_grad()
def areas_in_boxes(masks: LabelMapMasks | BitMasks | PolygonMasks | SoftMasks, boxes: Tensor) -> Tensor:
    """Count the pixels of each mask and those of them whose centres lie in its box.

    Args:
        masks: R_i masks of an image.
        boxes: [R_i, 4] xyxy in pixels.

    Returns:
        float32 [2, R_i] on the device of the boxes: of the whole mask, of its part in the box.

    Raises:
        TypeError: masks of another type.
    """
    masks = masks.masks if isinstance(masks, SoftMasks) else masks
    # A pixel whose centre is on an edge belongs to the box that begins there.
    limits = (boxes - 0.5).ceil().clamp(min=0).long()
    if isinstance(masks, LabelMapMasks | BitMasks) and chunks.prefers_chunks(boxes.device):
        bitmaps_of = masks.bitmaps if isinstance(masks, LabelMapMasks) else lambda chosen: masks[chosen].tensor
        return chunks.count_pixels(bitmaps_of, masks.image_size, limits).float()
    limits = limits.tolist()
    if isinstance(masks, LabelMapMasks):
        whole, labels = masks.area(), zip(masks.label_ids, limits, strict=True)
        inside = [(masks.label_map[y0:y1, x0:x1] == label).sum() for label, (x0, y0, x1, y1) in labels]
    elif isinstance(masks, BitMasks):
        shared = isinstance(masks, IndexedBitMasks)  # by the RoIs of one object, which is counted once
        bitmaps, index = (masks.bitmaps, masks.index.tolist()) if shared else (masks.tensor, range(len(masks)))
        counts = {k: bitmaps[k].count_nonzero() for k in set(index)}
        whole, indexed = [counts[k] for k in index], zip(index, limits, strict=True)
        inside = [bitmaps[k, y0:y1, x0:x1].count_nonzero() for k, (x0, y0, x1, y1) in indexed]
    elif isinstance(masks, PolygonMasks):
        pairs = [_polygon_areas(polygons, box) for polygons, box in zip(masks, limits, strict=True)]
        whole, inside = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    else:
        raise TypeError(
            f"Mask scoring cannot measure ground-truth masks of type {type(masks).__name__}: give LabelMapMasks, "
            "BitMasks or PolygonMasks."
        )
    return torch.tensor([list(map(int, whole)), list(map(int, inside))], dtype=torch.float32, device=boxes.device)


def _polygon_areas(polygons: list[np.ndarray], box: list[int]) -> tuple[int, int]:
    """Pixels of an object of polygons, and those within `box` (x0, y0, x1, y1 in whole pixels)."""
    if not polygons:
        return 0, 0
    points = [polygon.reshape(-1, 2) for polygon in polygons]
    corner = np.floor(np.concatenate(points).min(axis=0))  # x, y
    size = np.ceil(np.concatenate(points).max(axis=0) - corner) + 1  # width, height
    if not (size <= _LARGEST).all():
        raise ValueError(f"A ground-truth polygon of {size} pixels is larger than {_LARGEST}, or not finite.")
    width, height = size.astype(int).tolist()
    mask = polygons_to_mask([each - corner for each in points], height, width)
    x0, y0, x1, y1 = np.clip(np.array(box) - np.tile(corner, 2), 0, None).astype(int)
    return int(mask.sum()), int(mask[y0:y1, x0:x1].sum())
