"""Results as `supervision.Detections`, for its annotators, trackers, zones, metrics and exporters.

Shorthand: N objects of an image of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import supervision as sv
from supervision.config import CLASS_NAME_DATA_FIELD

from maskrcnn_plus.masks.measure import rle_boxes
from maskrcnn_plus.masks.rle_masks import RLEMasks, instance_masks
from maskrcnn_plus.results.facts import known_class_names, known_pixel_size
from maskrcnn_plus.results.overlay import class_label

if TYPE_CHECKING:
    from detectron2.structures import Instances


def to_supervision(
    instances: Instances, class_names: Sequence[str] | None = None, *, dense: bool = False
) -> sv.Detections:
    """Turn predicted instances into supervision's type.

    Args:
        instances: `pred_boxes` (xyxy, pixels), `scores` [N], `pred_classes` [N] and, of a model with masks,
            `pred_masks_rle` or `pred_masks`.
        class_names: name of each class, for `data["class_name"]`, which labels show; by default those that the
            instances know (`Predictions`).
        dense: masks as bool [N, H, W], N * H * W bytes; else as `supervision.CompactMask`, whose memory is that of the
            runs and which annotators and exporters take as well.

    Returns:
        Detections with `xyxy` float32 [N, 4], `confidence` [N], `class_id` [N] and `mask`, None without masks; where
        the instances know it, `metadata["pixel_size"]` is the size of a pixel in micrometres.

    Raises:
        ValueError: masks are malformed or of another size than the image, or the image has a side above the 32,768
            pixels that supervision allows compact masks.
    """
    classes = instances.pred_classes.cpu().numpy().astype(int)
    mask = None
    if instances.has("pred_masks_rle") or instances.has("pred_masks"):
        masks = instance_masks(instances)
        mask = masks.to_dense().numpy() if dense else compact_mask(masks)
    class_names, pixel_size = known_class_names(instances, class_names), known_pixel_size(instances)
    names = [class_label(class_names, index) for index in classes.tolist()] if class_names else None
    return sv.Detections(
        xyxy=instances.pred_boxes.tensor.detach().cpu().numpy().astype(np.float32),
        mask=mask,
        confidence=instances.scores.detach().cpu().numpy().astype(np.float32),
        class_id=classes,
        data={} if names is None else {CLASS_NAME_DATA_FIELD: np.array(names, dtype=np.str_)},
        metadata={} if pixel_size is None else {"pixel_size": pixel_size},
    )


def compact_mask(masks: RLEMasks) -> sv.CompactMask:
    """The same pixels as supervision's run-length codes of crops."""
    # CompactMask keeps only pixels in these boxes, whose far corner is the last pixel: the masks' own, not the
    # predicted ones.
    boxes = rle_boxes(masks) - [0, 0, 1, 1]
    return sv.CompactMask.from_coco_rle(list(masks), boxes, masks.image_size)
