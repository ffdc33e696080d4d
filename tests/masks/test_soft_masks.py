"""Soft crops against the area that a mask covers, and as Detectron2's loss takes them."""

import pytest
import torch
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_loss
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from maskrcnn_plus.mask_heads import mask_targets
from maskrcnn_plus.masks.bit_crops import IndexedBitMasks
from maskrcnn_plus.masks.label_masks import LabelMapMasks
from maskrcnn_plus.masks.soft_masks import SoftMasks

# Two rectangles of whole pixels, (x0, y0, x1, y1), in an image of 60 x 50.
RECTANGLES = [(10, 8, 30, 40), (30, 20, 45, 32)]


def masks_of(kind):
    label_map = torch.zeros(50, 60, dtype=torch.int32)
    for label, (x0, y0, x1, y1) in enumerate(RECTANGLES, start=1):
        label_map[y0:y1, x0:x1] = label
    labels = LabelMapMasks(label_map, torch.tensor([1, 2]))
    if kind == "labels":
        return labels
    if kind == "polygons":
        return PolygonMasks([[torch.tensor([x0, y0, x1, y0, x1, y1, x0, y1])] for x0, y0, x1, y1 in RECTANGLES])
    bitmaps = labels.to_bitmasks().tensor
    return BitMasks(bitmaps) if kind == "bitmaps" else IndexedBitMasks(bitmaps)


KINDS = ["labels", "bitmaps", "indexed", "polygons"]


@pytest.mark.parametrize("kind", KINDS)
def test_is_the_part_of_a_cell_that_the_mask_covers(kind):
    boxes = torch.tensor([[6.0, 4, 36, 46], [28, 18, 48, 34]])
    crops = SoftMasks(masks_of(kind)).crop_and_resize(boxes, 5)
    assert crops.dtype == torch.float32
    expected = torch.zeros(2, 5, 5)
    for roi, ((x0, y0, x1, y1), (left, top, right, bottom)) in enumerate(zip(RECTANGLES, boxes.tolist(), strict=True)):
        w, h = (right - left) / 5, (bottom - top) / 5
        for row in range(5):
            for column in range(5):
                width = min(x1, left + (column + 1) * w) - max(x0, left + column * w)
                height = min(y1, top + (row + 1) * h) - max(y0, top + row * h)
                expected[roi, row, column] = max(width, 0) * max(height, 0) / (w * h)
    # A quarter of a cell is the grain of each axis; pycocotools rounds the vertices of a polygon to it.
    assert (crops - expected).abs().max() <= 0.27
    assert (crops - expected).abs().mean() < 0.06
    assert ((crops > 0) & (crops < 1)).sum() > 10


@pytest.mark.parametrize("kind", KINDS)
def test_equals_soft_mask_targets(kind):
    boxes = torch.tensor([[6.3, 4.1, 36, 46], [28, 18.5, 48, 34]])
    instances = Instances((50, 60), proposal_boxes=Boxes(boxes), gt_masks=masks_of(kind))
    assert torch.equal(SoftMasks(masks_of(kind)).crop_and_resize(boxes, 14), mask_targets([instances], 14, soft=True))


def test_detectron2s_mask_loss_takes_them():
    boxes = torch.tensor([[6.0, 4, 36, 46], [28, 18, 48, 34]])
    logits = torch.randn(2, 1, 14, 14, generator=torch.Generator().manual_seed(0))
    soft = SoftMasks(masks_of("labels"))
    instances = Instances((50, 60), proposal_boxes=Boxes(boxes), gt_masks=soft, gt_classes=torch.zeros(2).long())
    with EventStorage() as storage:
        loss = mask_rcnn_loss(logits, [instances])
        accuracy = storage.latest()["mask_rcnn/accuracy"][0]
    targets = soft.crop_and_resize(boxes, 14)
    probs = logits[:, 0].double().sigmoid()
    expected = -(targets * probs.log() + (1 - targets) * (1 - probs).log()).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert accuracy == pytest.approx(((probs > 0.5) == (targets > 0.5)).double().mean().item())
    hard = F.binary_cross_entropy_with_logits(logits[:, 0], masks_of("labels").crop_and_resize(boxes, 14).float())
    assert loss != hard


@pytest.mark.parametrize("kind", KINDS)
def test_indexes_moves_and_counts_as_the_masks_behind_it(kind):
    soft = SoftMasks(masks_of(kind))
    boxes = torch.tensor([[28.0, 18, 48, 34], [6, 4, 36, 46], [6, 4, 36, 46]])
    chosen = soft[torch.tensor([1, 0, 0])].to("cpu")
    assert (len(soft), len(chosen), len(soft[:0])) == (2, 3, 0)
    assert torch.equal(chosen.crop_and_resize(boxes, 7)[:2], soft.crop_and_resize(boxes[:2].flip(0), 7).flip(0))
    assert soft[torch.zeros(0).long()].crop_and_resize(torch.zeros(0, 4), 7).shape == (0, 7, 7)
    assert soft.device == torch.device("cpu")
    assert repr(soft).startswith("SoftMasks(")
