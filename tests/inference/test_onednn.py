"""Convolutions by oneDNN: those of PyTorch in float64, and blocks of ResNets that leave their input alone."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BottleneckBlock
from timm.layers import Conv2dSame
from torch import nn
from torch.nn import functional as F

from maskrcnn_plus.inference.onednn import ActivatedConv2d, FusedBottleneck, PointwiseConv2d
from maskrcnn_plus.inference.optimize import fold_batch_norms, optimize_for_inference

pytestmark = pytest.mark.skipif(not PointwiseConv2d.takes(nn.Conv2d(1, 1, 1)), reason="PyTorch without oneDNN")

LAYERS = {
    "plain": lambda: nn.Conv2d(5, 7, 1),
    "without bias": lambda: nn.Conv2d(16, 32, 1, bias=False),
    "stride": lambda: nn.Conv2d(8, 8, 1, stride=(2, 3)),
    "padding by name": lambda: nn.Conv2d(3, 4, 1, padding="same"),
    "ReLU": lambda: Conv2d(16, 24, 1, activation=F.relu),
    "ReLU, a module": lambda: Conv2d(16, 24, 1, activation=nn.ReLU()),
    "norm and ReLU": lambda: Conv2d(16, 24, 1, norm=nn.GroupNorm(4, 24), activation=F.relu),
    "another activation": lambda: Conv2d(16, 24, 1, activation=torch.sigmoid),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_convolution_in_float64(kind, threads):
    torch.manual_seed(0)
    conv = LAYERS[kind]().requires_grad_(False)
    fast, exact = PointwiseConv2d(conv), copy.deepcopy(conv).double()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for shape in ((1, 9, 13), (3, 1, 1), (2, 40, 31)):
            x = torch.randn(shape[0], conv.in_channels, *shape[1:])
            expected = exact(x.double())
            for layout in (torch.contiguous_format, torch.channels_last):
                found = fast(x.contiguous(memory_format=layout))
                assert found.dtype == torch.float32
                assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_no_images():
    assert PointwiseConv2d(nn.Conv2d(3, 4, 1))(torch.zeros(0, 3, 5, 6)).shape == (0, 4, 5, 6)


ACTIVATED = {
    "dense": (lambda: nn.Conv2d(5, 8, 3, stride=2, padding=1), nn.ReLU()),
    "depthwise": (lambda: nn.Conv2d(16, 16, 5, padding=2, groups=16, bias=False), nn.ReLU6(inplace=True)),
    "1 x 1": (lambda: nn.Conv2d(8, 24, 1), nn.ReLU6()),
    "dilated": (lambda: nn.Conv2d(6, 6, 3, padding=(2, 0), dilation=2, groups=3), nn.ReLU()),
    "same 3": (lambda: Conv2dSame(16, 16, 3, stride=2, groups=16), nn.ReLU6()),
    "same 5": (lambda: Conv2dSame(16, 16, 5, stride=2, groups=16), nn.ReLU()),
    "same 7": (lambda: Conv2dSame(16, 16, 7, stride=2, groups=16), nn.ReLU()),
    "same, dense": (lambda: Conv2dSame(3, 16, 3, stride=2, bias=False), nn.ReLU6()),
    "same, oblong": (lambda: Conv2dSame(4, 4, (3, 5), stride=2), nn.ReLU6()),
    "after nothing": (lambda: nn.Conv2d(3, 4, 3), nn.Sequential(nn.Identity(), nn.ReLU6())),
}


@pytest.mark.parametrize("kind", ACTIVATED)
@pytest.mark.parametrize("size", [(10, 14), (11, 13), (10, 13), (64, 96), (6, 6), (4, 6)])
def test_a_convolution_with_its_activation_in_float64(kind, size):
    torch.manual_seed(0)
    make, activation = ACTIVATED[kind]
    conv = make().requires_grad_(False)
    exact = copy.deepcopy(conv).double()
    assert ActivatedConv2d.takes(conv, activation)
    fast = ActivatedConv2d(conv, activation)
    x = 4 * torch.randn(2, conv.in_channels, *size)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=layout)
        torch.testing.assert_close(fast(given).double(), activation(exact(x.double())), rtol=1e-5, atol=1e-5)
        assert torch.equal(given, x)
    assert fast(x[:0]).shape == (0, *exact(x.double()).shape[1:])


def test_pairs_that_stay():
    relu, conv = nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)
    for pair in (
        (conv, nn.SiLU()),
        (conv, nn.Sequential(nn.ReLU(), nn.ReLU6())),
        (conv, nn.Sequential()),
        (nn.Conv2d(4, 4, 3, padding="same"), relu),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), relu),
        (nn.Conv2d(4, 4, 3).bfloat16(), relu),
        (Conv2dSame(4, 4, 4, stride=2), relu),
        (Conv2dSame(4, 4, 1, stride=2), relu),
        (Conv2dSame(4, 4, (3, 1), stride=2), relu),
        (Conv2dSame(4, 4, 3, stride=(2, 1)), relu),
        (Conv2dSame(4, 4, 3, stride=2, dilation=2), relu),
        (nn.Linear(4, 4), relu),
    ):
        assert not ActivatedConv2d.takes(*pair)


BLOCKS = {
    "identity": {"in_channels": 32},
    "projection": {"in_channels": 16},
    "stride in the first": {"in_channels": 16, "stride": 2, "stride_in_1x1": True},
    "stride in the second": {"in_channels": 16, "stride": 2},
    "groups": {"in_channels": 32, "num_groups": 4},
    "dilation": {"in_channels": 32, "dilation": 2},
    "narrow": {"in_channels": 32, "bottleneck_channels": 6},  # too few channels for Winograd's method
}


def random_block(in_channels, bottleneck_channels=16, norm="FrozenBN", **options):
    torch.manual_seed(1)
    block = BottleneckBlock(in_channels, 32, bottleneck_channels=bottleneck_channels, norm=norm, **options)
    for module in block.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
            for tensor in (module.bias, module.running_mean):
                tensor.copy_(torch.randn_like(tensor))
    return block.eval()


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_in_float64(kind):
    block = random_block(**BLOCKS[kind])
    exact = copy.deepcopy(block).double()
    stage = optimize_for_inference(nn.Sequential(block))
    assert isinstance(stage[0], FusedBottleneck)
    x = torch.randn(2, block.in_channels, 21, 30).to(memory_format=torch.channels_last)
    given = x.clone()
    found, expected = stage(x), exact(x.double())
    assert expected.gt(0).float().mean() > 0.2
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(x, given)  # FPNs read it too


def test_what_is_not_taken():
    for conv in (
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(8, 8, 1, groups=2),
        nn.Conv2d(8, 8, 1, padding=1),
        nn.Conv2d(8, 8, 1).double(),
        nn.Conv2d(8, 8, 1).bfloat16(),
        nn.Linear(8, 8),
        type("Wrapped", (nn.Conv2d,), {})(8, 8, 1),
    ):
        assert not PointwiseConv2d.takes(conv)
    assert not FusedBottleneck.takes(random_block(32))
    normalised = random_block(32, norm="GN", bottleneck_channels=32)
    fold_batch_norms(normalised)
    stage = optimize_for_inference(nn.Sequential(normalised))
    assert type(stage[0]) is BottleneckBlock
    assert isinstance(stage[0].conv1, PointwiseConv2d)
