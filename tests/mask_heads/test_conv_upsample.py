"""Detectron2's mask head that starts with larger weights of its predictor."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead, build_mask_head
from torch.nn import functional as F

from maskrcnn_plus.config import add_config
from maskrcnn_plus.mask_heads import BoundaryMaskHead, ConvUpsampleMaskHead

SHAPE = ShapeSpec(channels=32, height=14, width=14)


@pytest.mark.parametrize("count", [0, 3])
def test_the_layers_are_detectron2s(count):
    options = dict(num_classes=4, conv_dims=[32, 8], conv_norm="GN")
    theirs, ours = (head(SHAPE, **options) for head in (MaskRCNNConvUpsampleHead, ConvUpsampleMaskHead))
    ours.load_state_dict(theirs.state_dict())
    features = torch.randn(count, 32, 14, 14)
    assert torch.equal(ours.layers(features), theirs.layers(features))


def test_yacs_configs_build_it():
    cfg = get_cfg()
    add_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 7
    cfg.MODEL.ROI_MASK_HEAD.NAME = "ConvUpsampleMaskHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 2
    head = build_mask_head(cfg, SHAPE)
    assert type(head) is ConvUpsampleMaskHead
    assert head.predictor.weight.shape[0] == 7
    assert len(head.conv_norm_relus) == 2


@pytest.mark.parametrize(("head", "limit"), [(ConvUpsampleMaskHead, 0.35), (BoundaryMaskHead, 0.05)])
def test_what_is_outside_is_learned_in_few_steps_of_adam(head, limit):
    """Objects are seen, what surrounds them is not. With weights of 0.001 the probability outside is 0.43 and 0.1."""
    outside = []
    for seed in range(6):
        torch.manual_seed(seed)
        model = head(SHAPE, num_classes=1, conv_dims=[32] * 3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.05)
        channels = torch.randn(32)
        for _ in range(100):
            masks = _discs(8)
            features = F.avg_pool2d(masks, 2) * channels[:, None, None] + 0.1 * torch.randn(8, 32, 14, 14)
            if head is BoundaryMaskHead:
                logits = model.mask_outputs(features)["pred_mask_logits"]
            else:
                logits = model.layers(features)
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(logits, masks).backward()
            optimizer.step()
        outside.append(logits.detach().sigmoid()[masks == 0].mean())
    assert torch.stack(outside).mean() < limit


def _discs(count: int) -> torch.Tensor:
    """Masks [count, 1, 28, 28] that fill most of their boxes."""
    y, x = torch.meshgrid(*[(torch.arange(28) + 0.5) / 28] * 2, indexing="ij")
    radius = 0.33 + 0.15 * torch.rand(count, 1, 1, 1)
    middle = 0.5 + 0.04 * torch.randn(2, count, 1, 1, 1)
    return ((x - middle[0]) ** 2 + (y - middle[1]) ** 2 < radius**2).float()
