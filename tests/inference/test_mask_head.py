"""The mask head for prediction against the whole of Detectron2's."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes, Instances

from maskrcnn_plus.inference.mask_head import SelectiveMaskHead
from maskrcnn_plus.mask_heads import ConvUpsampleMaskHead


@pytest.mark.parametrize("kind", [MaskRCNNConvUpsampleHead, ConvUpsampleMaskHead])
@pytest.mark.parametrize("num_classes", [1, 5])
@pytest.mark.parametrize("counts", [[0], [1], [20, 0, 17]])
@torch.no_grad()
def test_masks_equal_those_of_the_whole_head(kind, num_classes, counts):
    torch.manual_seed(0)
    head = kind(ShapeSpec(channels=16), num_classes=num_classes, conv_dims=[32, 16]).eval()
    for parameter in head.parameters():
        parameter.uniform_(-0.3, 0.3)
    features = torch.randn(sum(counts), 16, 7, 9)

    def instances():
        generator = torch.Generator().manual_seed(1)
        classes = [torch.randint(num_classes, (count,), generator=generator) for count in counts]
        return [Instances((9, 9), pred_boxes=Boxes(torch.zeros(len(c), 4)), pred_classes=c) for c in classes]

    expected = head(features, instances())
    assert SelectiveMaskHead.takes(head)
    found = SelectiveMaskHead(head)(features, instances())
    for image, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.pred_masks.shape == (counts[image], 1, 14, 18)
        torch.testing.assert_close(a.pred_masks, b.pred_masks, rtol=1e-5, atol=1e-6)
    assert not SelectiveMaskHead.takes(head.double())
