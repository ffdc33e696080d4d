"""Suppression equals that of each group alone, with the compiled operator and without, far from the origin and for many
groups."""

import pytest
import torch
from torchvision.ops import nms

from maskrcnn_plus.rpn import batched_nms


def one_by_one(boxes, scores, groups, threshold):
    """The definition: torchvision's `nms` of each group, the best of all first, of equals the first."""
    kept = torch.zeros(len(boxes), dtype=torch.bool)
    for group in groups.unique():
        (members,) = (groups == group).nonzero(as_tuple=True)
        kept[members[nms(boxes[members], scores[members], threshold)]] = True
    order = scores.argsort(descending=True, stable=True)
    return order[kept[order]]


def crowd(count, groups, corner, side, seed=0):
    """Boxes in bunches of six of one group, whose overlaps lie about the threshold."""
    generator = torch.Generator().manual_seed(seed)
    bunch = torch.arange(count) // 6
    low = corner * torch.rand(count, 2, generator=generator)[bunch]
    low = low + torch.rand(count, 2, generator=generator) * side / 3
    boxes = torch.cat([low, low + side * (1 + torch.rand(count, 2, generator=generator) / 3)], dim=1)
    scores = torch.randint(0, 1000, (count,), generator=generator) / 1000  # with equals
    return boxes, scores, bunch % groups


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize("groups", [1, 10, 150])
@pytest.mark.parametrize(("corner", "side"), [(500.0, 40.0), (1e4, 0.5), (1e6, 40.0), (1e-3, 1e-4)])
def test_groups_are_as_alone(groups, corner, side):
    boxes, scores, members = crowd(900, groups, corner, side)  # so few that torchvision's own groups are moved apart
    members = members + 3  # numbers that begin elsewhere
    assert torch.equal(batched_nms(boxes, scores, members, 0.5), one_by_one(boxes, scores, members, 0.5))


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.6, 0.7])
def test_overlaps_at_the_threshold_are_as_torchvisions(threshold):
    """Intersections and unions of whole pixels, whose quotient is the threshold but for its rounding."""
    widths = torch.arange(1.0, 41)
    boxes = torch.stack([widths * 0, widths * 0, widths, widths * 0 + 1], dim=1)
    scores = torch.linspace(1, 0.5, 40)
    for order in (torch.arange(40), torch.arange(39, -1, -1)):
        each, groups = boxes[order], torch.arange(40) % 2
        assert torch.equal(batched_nms(each, scores, groups, threshold), one_by_one(each, scores, groups, threshold))


@pytest.mark.usefixtures("_operators")
def test_no_boxes_and_wrong_shapes():
    boxes, scores, groups = crowd(9, 2, 50.0, 20.0)
    assert batched_nms(boxes[:0], scores[:0], groups[:0], 0.5).shape == (0,)
    assert batched_nms(boxes[:0], scores[:0], groups[:0], 0.5).dtype == torch.int64
    for arguments in ((boxes[:, :3], scores, groups), (boxes, scores[1:], groups), (boxes, scores, groups.float())):
        with pytest.raises(ValueError, match="batched_nms: boxes must be"):
            batched_nms(*arguments, 0.5)
