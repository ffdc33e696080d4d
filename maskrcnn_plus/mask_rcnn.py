"""Mask R-CNN (He et al., 2017) as Detectron2's `GeneralizedRCNN`, with a choice of how masks come into the image.

Shorthand: N objects, m x m mask of an object in its box, image of H x W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling.meta_arch import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image


@META_ARCH_REGISTRY.register()
class MaskRCNNPlus(GeneralizedRCNN):
    """Drop-in for `GeneralizedRCNN`."""

    @configurable
    def __init__(self, *, mask_pasting: str = "detectron2", **kwargs) -> None:
        """Take the parts.

        Args:
            mask_pasting: "detectron2" samples a mask at the centres of the pixels of its box; "torchvision" resizes it
                to the whole pixels of its box.
            **kwargs: those of `GeneralizedRCNN`.

        Raises:
            ValueError: there is no such `mask_pasting`.
        """
        super().__init__(**kwargs)
        if mask_pasting not in ("detectron2", "torchvision"):
            raise ValueError(f'mask_pasting must be "detectron2" or "torchvision", got {mask_pasting!r}.')
        self.mask_pasting = mask_pasting

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict[str, Instances]] | list[Instances]:
        """Detect the objects of a batch.

        Args:
            batched_inputs: a dict an image: `image` [C, h, w], and `height` and `width` of the result in pixels.
            detected_instances: boxes and classes that are known, an Instances an image, in pixels of `image`.
            do_postprocess: bring the results to `height` x `width`; else they stay in pixels of `image`.

        Returns:
            {"instances": Instances} an image, or the Instances alone without `do_postprocess`. With it, `pred_masks`
            is bool [N, H, W]; without, probabilities [N, 1, m, m].
        """
        if self.mask_pasting == "detectron2" or not do_postprocess:
            return super().inference(batched_inputs, detected_instances, do_postprocess)
        results = super().inference(batched_inputs, detected_instances, do_postprocess=False)
        return [
            {"instances": _postprocess(result, each.get("height"), each.get("width"))}
            for result, each in zip(results, batched_inputs, strict=True)
        ]


def paste_masks(mask_probs: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5) -> Tensor:
    """Paste masks by torchvision's `paste_masks_in_image`, of which one float mask of the image exists at a time.

    Args:
        mask_probs: [N, 1, m, m].
        boxes: [N, 4] xyxy, pixels, within the image.
        height, width: of the image, pixels.
        threshold: a pixel belongs to the object from this probability on.

    Returns:
        bool [N, height, width].
    """
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=boxes.device)
    for mask, probs, box in zip(masks, mask_probs, boxes, strict=True):
        mask.copy_(paste_masks_in_image(probs[None], box[None], (height, width))[0, 0] >= threshold)
    return masks


def _postprocess(results: Instances, height: int | None, width: int | None) -> Instances:
    """Detectron2's `detector_postprocess` to height x width, but for the masks."""
    height, width = height or results.image_size[0], width or results.image_size[1]
    fields = dict(results.get_fields())
    probs = fields.pop("pred_masks", None)
    if probs is None:
        return detector_postprocess(results, height, width)
    # Under another name Detectron2 only drops those of the boxes that it drops.
    results = detector_postprocess(Instances(results.image_size, **fields, mask_probs=probs), height, width)
    probs = results.mask_probs
    results.remove("mask_probs")
    results.pred_masks = paste_masks(probs, results.pred_boxes.tensor, height, width)
    return results
