"""The proposals of a whole detector, for evaluating its proposal generator alone."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@torch.no_grad()
def proposals_of(model: nn.Module, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
    """Run the backbone and the proposal generator of a model, and nothing after them.

    `inference_on_dataset(functools.partial(proposals_of, model), loader, ProposalRecallEvaluator(name))` measures them.

    Args:
        model: a `GeneralizedRCNN` in evaluation mode (`MaskRCNNPlus` is one), or one in `DistributedDataParallel`.
        batched_inputs: a dict an image: `image` [C, h, w], and `height` and `width` of the original image in pixels,
            those of `image` where they are absent.

    Returns:
        {"proposals": Instances} an image, as of Detectron2's `ProposalNetwork`: `proposal_boxes` xyxy in pixels of
        the original image and `objectness_logits`, the best first. Their number is limited by the second number of the
        proposal generator's `post_nms_topk`.

    Raises:
        ValueError: the model is in training mode or has no proposal generator.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    if model.training:
        raise ValueError("proposals_of takes a model in evaluation mode: call model.eval() before.")
    if getattr(model, "proposal_generator", None) is None:
        raise ValueError(f"{type(model).__name__} has no proposal generator; its proposals come with its inputs.")
    images = model.preprocess_image(batched_inputs)
    proposals, _ = model.proposal_generator(images, model.backbone(images.tensor), None)
    outputs = []
    for each, entry in zip(proposals, batched_inputs, strict=True):
        height, width = entry.get("height", each.image_size[0]), entry.get("width", each.image_size[1])
        outputs.append({"proposals": detector_postprocess(each, height, width)})
    return outputs
