"""Soft mask targets reach every mask head that can learn from them; the others refuse them when they are built."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from maskrcnn_plus.mask_heads import BoundaryMaskHead, MaskIoUHead, MaskScoringHead, PointRendHead
from maskrcnn_plus.masks.label_masks import LabelMapMasks
from maskrcnn_plus.roi import DenseCascadeROIHeads, DenseROIHeads, PyramidROIAlign

SIDE = 64
POOLED = ShapeSpec(channels=4, height=8, width=8)


def boundary():
    return BoundaryMaskHead(POOLED, num_classes=2, conv_dims=[4, 4])


def stock():
    return MaskRCNNConvUpsampleHead(POOLED, num_classes=2, conv_dims=[4, 4])


def scoring(head):
    iou = MaskIoUHead(POOLED, num_classes=2, conv_dims=[4, 4], fc_dims=[8])
    return MaskScoringHead(mask_head=head(), mask_iou_head=iou)


def point_rend():
    return PointRendHead({"p2": ShapeSpec(channels=4, stride=4)}, num_classes=2, conv_dim=4, fc_dim=8, point_fc_dim=8)


HEADS = {"stock": stock, "boundary": boundary, "scored": lambda: scoring(stock), "both": lambda: scoring(boundary)}


def heads(mask_head, cls=DenseROIHeads, pooler=True, **options):
    torch.manual_seed(0)
    box = dict(
        box_head=FastRCNNConvFCHead(ShapeSpec(channels=4, height=7, width=7), conv_dims=[], fc_dims=[8]),
        box_predictor=FastRCNNOutputLayers(
            ShapeSpec(channels=8), box2box_transform=Box2BoxTransform((10, 10, 5, 5)), num_classes=2
        ),
        proposal_matcher=Matcher([0.5], [0, 1], allow_low_quality_matches=False),
    )
    if cls is DenseCascadeROIHeads:
        box = {f"{name}s": [part] for name, part in box.items()}
    return cls(
        num_classes=2,
        batch_size_per_image=16,
        positive_fraction=0.5,
        box_in_features=["p2"],
        box_pooler=PyramidROIAlign(7, (1 / 4,), 0),
        mask_in_features=["p2"],
        mask_pooler=PyramidROIAlign(8, (1 / 4,), 0) if pooler else None,
        mask_head=mask_head,
        **box,
        **options,
    ).train()


def masks_of(kind):
    label_map = torch.zeros(SIDE, SIDE, dtype=torch.int32)
    boxes = torch.tensor([[3.0, 4, 24, 30], [30, 20, 59, 50]])
    for label, (x0, y0, x1, y1) in enumerate(boxes.int().tolist(), start=1):
        label_map[y0:y1, x0:x1] = label
    masks = LabelMapMasks(label_map, torch.arange(1, 3))
    if kind is BitMasks:
        masks = masks.to_bitmasks()
    if kind is PolygonMasks:
        masks = PolygonMasks([[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes.tolist()])
    return masks, boxes


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", [LabelMapMasks, BitMasks, PolygonMasks])
def test_heads_learn_from_soft_targets_of_every_type_of_masks(head, kind):
    masks, boxes = masks_of(kind)
    targets = Instances((SIDE, SIDE), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([0, 1]), gt_masks=masks)
    proposals = Instances((SIDE, SIDE), proposal_boxes=Boxes(boxes + 2.3), objectness_logits=torch.zeros(2))
    features = {"p2": torch.rand(1, 4, SIDE // 4, SIDE // 4)}
    losses = []
    for soft in (True, False):
        module = heads(HEADS[head](), soft_mask_targets=soft)
        with EventStorage():
            _, found = module(None, features, [proposals], [targets])
        sum(found.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.mask_head.parameters())
        losses.append(found["loss_mask"])
    assert losses[0].isfinite()
    assert losses[0] != losses[1]


@pytest.mark.parametrize("cls", [DenseROIHeads, DenseCascadeROIHeads])
def test_point_rend_refuses_them_by_name(cls):
    with pytest.raises(ValueError, match=r"soft_mask_targets is not for PointRendHead.*SOFT_MASK_TARGETS"):
        heads(point_rend(), cls, pooler=False, soft_mask_targets=True)
    assert not heads(point_rend(), cls, pooler=False).soft_mask_targets
    with pytest.raises(ValueError, match="cannot score the masks of a PointRendHead"):
        scoring(point_rend)
