"""What a mask branch learns from: ground-truth masks cut by their RoIs (He et al., Mask R-CNN, 2017, Sec. 3), and the
boundaries of these cuts (Cheng et al., Boundary-preserving Mask R-CNN, 2020, Sec. 3).

Mask scoring (Huang et al., Mask Scoring R-CNN, 2019, Sec. 3.2) learns the IoU of a predicted mask, which ends at its
RoI, with the whole object, which may not.

Shorthand: N images, R RoIs of all images, R_i of image i, S mask side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor
from torch.nn import functional as F

from maskrcnn_plus.masks.adapters import adapt_masks
from maskrcnn_plus.masks.ground_truth import GroundTruthMasks
from maskrcnn_plus.masks.soft_masks import SoftMasks


@torch.no_grad()
def mask_targets(instances: Sequence[Instances], size: int, soft: bool = False) -> Tensor:
    """Cut the ground-truth mask of each RoI by its box and resize it to size x size.

    Args:
        instances: N Instances with `proposal_boxes` (xyxy in pixels) and `gt_masks` (`LabelMapMasks`, `BitMasks`,
            `PolygonMasks` or another type with `crop_and_resize`), a mask a box. Those of length 0 need no `gt_masks`.
        size: side S of a target.
        soft: how much of each pixel the mask covers, the mean of a crop of four times the side, in place of 0 or 1.

    Returns:
        float32 [R, S, S] with values in [0, 1] on the device of the boxes, image after image.

    Raises:
        ValueError: size is not positive, or an image has boxes without masks.
    """
    if size < 1:
        raise ValueError(f"The side of mask targets must be at least 1, got {size}.")
    targets = []
    for index, each in enumerate(instances):
        if len(each) == 0:  # an image without objects has no gt_masks
            continue
        if not each.has("gt_masks") or not each.has("proposal_boxes"):
            raise ValueError(
                f"Mask targets need the fields proposal_boxes and gt_masks; image {index} of the batch has "
                f"{sorted(each.get_fields())}. Give the mapper annotations with masks, or train without a mask head."
            )
        boxes = each.proposal_boxes.tensor
        masks = SoftMasks(each.gt_masks) if soft else each.gt_masks
        targets.append(masks.crop_and_resize(boxes, size).to(boxes.device, torch.float32))  # [R_i, S, S]
    if not targets:
        boxes = [each.proposal_boxes for each in instances if each.has("proposal_boxes")]
        return torch.zeros(0, size, size, device=boxes[0].device if boxes else None)
    return torch.cat(targets)


@torch.no_grad()
def boundary_targets(masks: Tensor) -> Tensor:
    """Mark the boundary pixels of masks: foreground with background among the neighbours above, below, left and right.

    That is where the Laplacian of the binary mask (kernel 4 in the middle, -1 at the four neighbours) is above 0; the
    authors' code takes the eight neighbours, whose boundary is thicker at diagonals. As there, what lies outside the
    crop counts as background, so that an object which its RoI cuts off has a boundary at the cut.

    Args:
        masks: [R, S, S] in [0, 1]; a pixel is foreground from 0.5 on. Bool masks will do.

    Returns:
        [R, S, S] of 0 and 1: of the type of `masks`, float32 for bool masks.
    """
    foreground = masks if masks.dtype == torch.bool else masks >= 0.5
    padded = F.pad(foreground, (1, 1, 1, 1))  # [R, S + 2, S + 2]
    rows, columns = padded[:, :, 1:-1], padded[:, 1:-1]
    interior = rows[:, :-2] & rows[:, 2:] & columns[:, :, :-2] & columns[:, :, 2:]
    return (foreground & ~interior).to(torch.float32 if masks.dtype == torch.bool else masks.dtype)


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
