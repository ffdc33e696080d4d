"""What mask scoring learns from (Huang et al., "Mask Scoring R-CNN", 2019, Sec. 3.2).

That is the IoU of a predicted mask, which ends at its RoI, with the whole object, which may not.

Shorthand: R RoIs of all images, R_i of image i, S x S predicted mask.
"""

from __future__ import annotations

import torch
from detectron2.structures import BitMasks, PolygonMasks
from torch import Tensor

from maskrcnn_plus.masks.adapters import adapt_masks
from maskrcnn_plus.masks.ground_truth import GroundTruthMasks


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
    total = inside * areas.clamp(min=1) / areas_inside.clamp(min=1)
    return intersection / (predicted + total - intersection).clamp(min=1)


def areas_in_boxes(masks: GroundTruthMasks | BitMasks | PolygonMasks, boxes: Tensor) -> Tensor:
    """Count the pixels of each mask and those of them whose centres lie in its box.

    Args:
        masks: R_i masks of an image.
        boxes: [R_i, 4] xyxy in pixels.

    Returns:
        float32 [2, R_i] on the device of the boxes: of the whole mask, of its part in the box.

    Raises:
        TypeError: masks of another type.
    """
    masks = adapt_masks(masks)
    if not isinstance(masks, GroundTruthMasks):
        raise TypeError(
            f"Mask scoring cannot measure ground-truth masks of type {type(masks).__name__}: give LabelMapMasks, "
            "BitMasks or PolygonMasks."
        )
    return masks.areas_in_boxes(boxes)
