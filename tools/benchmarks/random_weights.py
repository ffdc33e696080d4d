"""Random weights for torchvision's Mask R-CNN under which it works as trained ones let it work.

Batch norms have statistics, and the outputs of the heads vary from place to place, so that there are objects of many
classes with scores, boxes and masks of all kinds. Logits of the classes that COCO never annotated are low, as training
makes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor, nn

THING_IDS = torch.tensor([category["id"] for category in COCO_CATEGORIES if category["isthing"]])
"""torchvision's label of each of Detectron2's 80 classes."""


@torch.inference_mode()
def randomise(model: nn.Module, image: Tensor, seed: int = 0) -> None:
    """Set the weights of a torchvision Mask R-CNN of COCO, in place, for objects in an image like this.

    Args:
        model: `maskrcnn_resnet50_fpn` or its second version, in evaluation mode.
        image: [3, H, W] in 0..1.
        seed: another seed gives other objects.
    """
    random = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) or "FrozenBatchNorm2d" in type(module).__name__:
            _randomise_norm(module, 0.1 if name.endswith("bn3") else 0.7, random)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            inputs = module.in_channels if isinstance(module, nn.ConvTranspose2d) else module.weight[0].numel()
            module.weight.copy_((2 / inputs) ** 0.5 * torch.randn(module.weight.shape, generator=random))
            if module.bias is not None:
                module.bias.copy_(0.1 * torch.randn(module.bias.shape, generator=random))

    batch, _ = model.transform([image])
    features = model.backbone(batch.tensors)
    hidden = [model.rpn.head.conv(feature) for feature in features.values()]
    _spread(model.rpn.head.cls_logits, hidden, random, std=2.0)
    _spread(model.rpn.head.bbox_pred, hidden, random, std=0.3)

    heads, (height, width) = model.roi_heads, batch.image_sizes[0]
    corners = torch.rand(60, 2, 2, generator=random).sort(dim=1).values.flatten(1)  # [60, 4]
    boxes = [corners * torch.tensor([width, height, width, height])]
    hidden = [heads.box_head(heads.box_roi_pool(features, boxes, batch.image_sizes))]
    _spread(heads.box_predictor.cls_score, hidden, random, std=2.5)
    _spread(heads.box_predictor.bbox_pred, hidden, random, std=1.0)
    unused = sorted(set(range(1, 91)) - set(THING_IDS.tolist()))
    heads.box_predictor.cls_score.bias[unused] -= 10
    hidden = heads.mask_head(heads.mask_roi_pool(features, boxes, batch.image_sizes))
    hidden = [heads.mask_predictor.relu(heads.mask_predictor.conv5_mask(hidden))]
    _spread(heads.mask_predictor.mask_fcn_logits, hidden, random, std=1.5, offset=1.0)


def _randomise_norm(norm: nn.Module, low: float, random: torch.Generator) -> None:
    """Weights from `low`, which is small at the end of residual branches to keep features of one magnitude."""
    norm.weight.copy_(low + 0.5 * torch.rand(norm.weight.shape, generator=random))
    norm.running_var.copy_(0.5 + torch.rand(norm.weight.shape, generator=random))
    norm.running_mean.copy_(0.1 * torch.randn(norm.weight.shape, generator=random))
    norm.bias.copy_(0.1 * torch.randn(norm.weight.shape, generator=random))


def _spread(
    layer: nn.Module, inputs: Sequence[Tensor], random: torch.Generator, std: float, offset: float = 0.0
) -> None:
    """Scale and shift each output of the last layer of a head to `std` and about `offset` over the inputs."""
    outputs = torch.cat([layer(x).transpose(0, 1).flatten(1) for x in inputs], dim=1)  # [channels, places]
    scale = std / outputs.std(dim=1)
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    noise = 0.3 * torch.randn(scale.shape, generator=random)
    layer.bias.copy_((layer.bias - outputs.mean(dim=1)) * scale + noise + offset)
