"""Fused convolutions and blocks against the modules that they replace."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.nn import functional as F

from maskrcnn_plus.inference.fused import FusedBottleneck, FusedConv2d
from maskrcnn_plus.inference.mask_head import SelectiveMaskHead
from maskrcnn_plus.inference.optimize import optimize_for_inference

needs_onednn = pytest.mark.skipif(not FusedConv2d.takes(nn.Conv2d(1, 1, 1)), reason="PyTorch without oneDNN")


@needs_onednn
@pytest.mark.parametrize("activation", [None, nn.ReLU(), F.relu, nn.Hardswish()], ids=["none", "ReLU", "relu", "other"])
@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 1},
        {"kernel_size": 1, "stride": 2, "bias": False},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (1, 5), "padding": (0, 2), "groups": 4},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(1, 17, 23), (3, 8, 9)])
@torch.no_grad()
def test_convolution_sum_and_activation_in_one(activation, geometry, size):
    torch.manual_seed(0)
    conv = Conv2d(16, 24, activation=activation, **geometry).to(memory_format=torch.channels_last)
    x = torch.randn(size[0], 16, *size[1:]).to(memory_format=torch.channels_last)
    plain = copy.deepcopy(conv).double()
    plain.activation = None
    apply = activation or nn.Identity()
    without = plain(x.double())
    residual = torch.randn(without.shape).to(memory_format=torch.channels_last)
    kept = residual.clone(), x.clone()
    fused = FusedConv2d(conv)
    torch.testing.assert_close(fused(x).double(), apply(without), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused(x, residual).double(), apply(without + residual.double()), rtol=1e-5, atol=1e-5)
    assert torch.equal(residual, kept[0])  # neither is written to
    assert torch.equal(x, kept[1])
    assert fused(x[:0]).shape == (0, *without.shape[1:])


@needs_onednn
def test_convolutions_that_it_cannot_do_are_not_taken():
    assert FusedConv2d.takes(Conv2d(4, 4, 3))
    assert not FusedConv2d.takes(Conv2d(4, 4, 3, norm=nn.BatchNorm2d(4)))
    assert not FusedConv2d.takes(nn.Conv2d(4, 4, 3, padding="same"))
    assert not FusedConv2d.takes(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    assert not FusedConv2d.takes(nn.Conv2d(4, 4, 3).double())
    assert not FusedConv2d.takes(nn.ConvTranspose2d(4, 4, 3))
    assert not FusedBottleneck.takes(BottleneckBlock(32, 32, bottleneck_channels=32, norm="GN"))


@needs_onednn
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"stride": 2, "stride_in_1x1": True}, {"num_groups": 4}], ids=str
)
@pytest.mark.parametrize("out_channels", [32, 64])
@torch.no_grad()
def test_block_equals_detectron2s_and_leaves_its_input(options, out_channels):
    torch.manual_seed(0)
    if options.get("stride") and out_channels == 32:
        options = {**options, "stride": 1}  # without a projection the sizes must agree
    block = BottleneckBlock(32, out_channels, bottleneck_channels=16, norm="FrozenBN", **options).eval()
    for norm in block.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 2)
    block = block.to(memory_format=torch.channels_last)
    x = torch.randn(2, 32, 13, 18).to(memory_format=torch.channels_last)
    kept = x.clone()
    expected = block.double()(x.double())
    (fused,) = optimize_for_inference(nn.Sequential(block.float()))
    assert type(fused) is FusedBottleneck
    torch.testing.assert_close(fused(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, kept)  # it is a feature map of the pyramid too


@pytest.mark.parametrize("num_classes", [1, 5])
@pytest.mark.parametrize("counts", [[0], [1], [20, 0, 17]])
@torch.no_grad()
def test_masks_equal_those_of_the_whole_head(num_classes, counts):
    torch.manual_seed(0)
    head = MaskRCNNConvUpsampleHead(ShapeSpec(channels=16), num_classes=num_classes, conv_dims=[32, 16]).eval()
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
