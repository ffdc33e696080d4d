"""The adaptive convolution against plain and dilated convolutions and a loop over the paper's formula."""

import math

import pytest
import torch
import torch.nn.functional as F

from maskrcnn_plus.rpn.adaptive_conv import AdaptiveConv2d


def grid_anchors(images, height, width, dilation=1):
    """Anchors whose grid is that of a convolution: around each place, twice the dilation wide."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centers = torch.stack([x, y], dim=-1).reshape(1, -1, 2).double()
    return torch.cat([centers - dilation, centers + dilation], dim=2).repeat(images, 1, 1)


def random_anchors(images, height, width, seed=0):
    """Anchors of all sizes, some of them partly or wholly outside of the map."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height], dtype=torch.float64)
    centers = (torch.rand(images, height * width, 2, generator=generator).double() * 1.6 - 0.3) * size
    sides = torch.rand(images, height * width, 2, generator=generator).double() * 6
    return torch.cat([centers - sides / 2, centers + sides / 2], dim=2)


def module_and_features(images=2, channels=3, outputs=4, height=5, width=7, bias=False):
    torch.manual_seed(0)
    conv = AdaptiveConv2d(channels, outputs, bias).double()
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter)
    return conv, torch.randn(images, channels, height, width, dtype=torch.float64)


def sample(image, y, x):
    """Bilinear value of one channel (a list of rows), zeros around it."""
    height, width = len(image), len(image[0])
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += image[row][column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def loop(features, anchors, weight):
    """Eq. 4 with the offsets of Eq. 5 and 6, a number at a time."""
    images, _, height, width = features.shape
    output = torch.zeros(images, len(weight), height, width, dtype=torch.float64)
    values, kernels = features.tolist(), weight.tolist()
    for n in range(images):
        for place, (x1, y1, x2, y2) in enumerate(anchors[n].tolist()):
            for k, kernel in enumerate(kernels):
                total = 0.0
                for c, taps in enumerate(kernel):
                    for i, y in enumerate((y1, (y1 + y2) / 2, y2)):
                        for j, x in enumerate((x1, (x1 + x2) / 2, x2)):
                            total += taps[i][j] * sample(values[n][c], y, x)
                output[n, k, place // width, place % width] = total
    return output


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 6), (9, 2)])
@pytest.mark.parametrize("bias", [False, True])
def test_on_the_regular_grid_is_a_convolution(size, bias):
    conv, features = module_and_features(height=size[0], width=size[1], bias=bias)
    expected = F.conv2d(features, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(conv(features, grid_anchors(2, *size)), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("dilation", [2, 3])
def test_on_a_wider_grid_is_a_dilated_convolution(dilation):
    conv, features = module_and_features()
    expected = F.conv2d(features, conv.weight, padding=dilation, dilation=dilation)
    torch.testing.assert_close(conv(features, grid_anchors(2, 5, 7, dilation)), expected, atol=1e-10, rtol=0)


def test_of_points_reads_the_place_of_the_point_nine_times():
    conv, features = module_and_features()
    centers = grid_anchors(2, 5, 7, dilation=0)
    expected = F.conv2d(features, conv.weight.sum((2, 3), keepdim=True))
    torch.testing.assert_close(conv(features, centers), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_loop(seed):
    conv, features = module_and_features()
    anchors = random_anchors(2, 5, 7, seed)
    assert (anchors[..., 0] > 7).any()
    assert (anchors[..., 2] < 0).any()
    torch.testing.assert_close(conv(features, anchors), loop(features, anchors, conv.weight), atol=1e-10, rtol=0)


def test_gradients():
    conv, features = module_and_features(images=1, channels=2, outputs=2, height=3, width=4, bias=True)
    anchors = random_anchors(1, 3, 4)
    parameters = [each.detach().requires_grad_() for each in (features, conv.weight, conv.bias)]

    def run(features, weight, bias):
        return torch.func.functional_call(conv, {"weight": weight, "bias": bias}, (features, anchors))

    assert torch.autograd.gradcheck(run, parameters)


def test_no_gradient_flows_to_the_anchors():
    conv, features = module_and_features()
    anchors = random_anchors(2, 5, 7).requires_grad_()
    conv(features.requires_grad_(), anchors).sum().backward()
    assert anchors.grad is None
    assert features.grad.abs().sum() > 0
    assert conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e38, -1e38])
def test_anchors_without_a_place_read_zeros(value):
    conv, features = module_and_features()
    conv, features = conv.float(), features.float().requires_grad_()
    anchors = random_anchors(2, 5, 7).float()
    bad = anchors.clone()
    bad[1, 8] = value
    bad[0, 3, 1] = value  # one coordinate alone
    expected, result = conv(features, anchors), conv(features, bad)
    result.sum().backward()
    assert torch.isfinite(features.grad).all()
    assert torch.isfinite(conv.weight.grad).all()
    result, expected = result.flatten(2), expected.flatten(2)
    assert not result[1, :, 8].any()
    same = torch.ones(2, 35, dtype=torch.bool)
    same[1, 8] = same[0, 3] = False
    same = same[:, None].expand_as(result)
    assert torch.equal(result[same], expected[same])


def test_memory_formats_and_empty_batches():
    conv, features = module_and_features()
    anchors = random_anchors(2, 5, 7)
    last = conv(features.contiguous(memory_format=torch.channels_last), anchors)
    assert torch.equal(last, conv(features, anchors))
    assert conv(features[:0], anchors[:0]).shape == (0, 4, 5, 7)


def test_under_autocast_points_keep_their_precision():
    conv, features = module_and_features()
    conv, anchors = conv.float(), random_anchors(2, 5, 7).float()
    features = features.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        result = conv(features, anchors)
    torch.testing.assert_close(result.float(), conv(features.float(), anchors), atol=0.05, rtol=0.02)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_as_one_graph():
    conv, features = module_and_features()
    anchors = random_anchors(2, 5, 7)
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features, anchors), conv(features, anchors), atol=1e-12, rtol=0)
    grads = []
    for module in (compiled, conv):
        conv.zero_grad()
        module(features, anchors).square().sum().backward()
        grads.append(conv.weight.grad.clone())
    torch.testing.assert_close(*grads)


def test_names_of_weights():
    assert list(AdaptiveConv2d(2, 3).state_dict()) == ["weight"]
    assert {k: v.shape for k, v in AdaptiveConv2d(2, 3, bias=True).state_dict().items()} == {
        "weight": (3, 2, 3, 3),
        "bias": (3,),
    }
