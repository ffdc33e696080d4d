"""Box heads with reordered weights against Detectron2's, in float64."""

import copy

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from torch import nn

from maskrcnn_plus.inference.optimize import FlattenPixels, flatten_pixels
from maskrcnn_plus.roi.pooler import PyramidROIAlign

SIZE = (5, 7)


def make_head(convs=(), fcs=(11, 4)):
    torch.manual_seed(0)
    return FastRCNNConvFCHead(
        ShapeSpec(channels=6, height=SIZE[0], width=SIZE[1]), conv_dims=convs, fc_dims=fcs
    ).double()


def make_heads(box_head, pooler=None):
    heads = nn.Module()
    heads.box_pooler, heads.box_head = pooler or PyramidROIAlign(SIZE, [0.25], 2), box_head
    return heads


@pytest.mark.parametrize("convs", [(), (8, 3)])
@pytest.mark.parametrize(("count", "times"), [(0, 1), (1, 1), (9, 1), (9, 2)])
def test_features_are_the_same(convs, count, times):
    head = make_head(convs)
    expected = copy.deepcopy(head)
    for _ in range(times):  # a model may be optimised twice
        flatten_pixels(make_heads(head))
    assert isinstance(head.flatten, FlattenPixels)
    x = torch.randn(count, 6, *SIZE, dtype=torch.float64)
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(head(x.contiguous(memory_format=layout)), expected(x), rtol=1e-12, atol=1e-12)


def test_channels_last_features_are_not_copied():
    x = torch.randn(3, 6, *SIZE).contiguous(memory_format=torch.channels_last)
    assert FlattenPixels()(x).data_ptr() == x.data_ptr()


def test_each_head_of_a_cascade_and_no_other_kind():
    cascade = nn.ModuleList([make_head(), make_head()])
    flatten_pixels(make_heads(cascade))
    assert all(isinstance(head.flatten, FlattenPixels) for head in cascade)
    contiguous, without_layers = make_head(), make_head(convs=(8,), fcs=())
    flatten_pixels(make_heads(contiguous, ROIPooler(SIZE, [0.25], 2, "ROIAlignV2")))
    flatten_pixels(make_heads(without_layers))
    flatten_pixels(nn.Module())
    assert type(contiguous.flatten) is nn.Flatten
    assert not hasattr(without_layers, "flatten")
