"""The Winograd convolution against PyTorch's in float64, and the modules that it stands in for."""

import pytest
import torch
from detectron2.layers import Conv2d, get_norm
from torch import nn
from torch.nn import functional as F

from maskrcnn_plus.ops import extension, winograd
from maskrcnn_plus.ops.winograd import WinogradConv2d, is_fast, transform_kernels

needs_operator = pytest.mark.skipif(not extension.is_available(), reason=extension.why_missing())
needs_vectors = pytest.mark.skipif(not is_fast(), reason="the operator, or a processor with AVX2, is missing")


def convolve(x, weight, bias, relu=False):
    return torch.ops.maskrcnn_plus.winograd_conv3x3(x, transform_kernels(weight), bias, relu)


def operands(images, channels, out_channels, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, channels, height, width, generator=generator)
    weight = torch.randn(out_channels, channels, 3, 3, generator=generator)
    return x, weight, torch.randn(out_channels, generator=generator)


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (4, 4), (5, 4), (8, 13), (14, 14), (33, 50)])
@pytest.mark.parametrize("channels", [(16, 16), (48, 32), (32, 80), (256, 96)])
@pytest.mark.parametrize("relu", [False, True])
def test_equals_the_direct_convolution(size, channels, relu):
    x, weight, bias = operands(2, *channels, *size)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    scale = expected.std()
    expected = expected.relu() if relu else expected
    for memory_format in (torch.contiguous_format, torch.channels_last):
        found = convolve(x.to(memory_format=memory_format), weight, bias, relu)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 3e-5 * scale


@needs_operator
def test_error_is_a_few_roundings():
    x, weight, bias = operands(1, 256, 256, 28, 28)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    error = (convolve(x, weight, bias) - expected).std() / expected.std()
    assert error < 2e-6
    assert error < 10 * (F.conv2d(x, weight, bias, padding=1) - expected).std() / expected.std()


@needs_operator
def test_parts_of_larger_tensors_and_other_strides():
    x, weight, bias = operands(3, 64, 32, 12, 20)
    part = x[1:, 16:48, 2:9, ::2]
    expected = F.conv2d(part, weight[:, 16:48], bias, padding=1)
    torch.testing.assert_close(convolve(part, weight[:, 16:48], bias), expected, atol=1e-3, rtol=1e-4)


@needs_operator
def test_threads_do_not_change_the_result():
    x, weight, bias = operands(3, 32, 32, 50, 70)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(convolve(x, weight, bias))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_operator
@pytest.mark.parametrize("shape", [(0, 16, 5, 5), (2, 16, 0, 5), (2, 16, 5, 0)])
def test_nothing_to_do(shape):
    _, weight, bias = operands(1, 16, 32, 1, 1)
    assert convolve(torch.zeros(shape), weight, bias).shape == (shape[0], 32, *shape[2:])


@needs_operator
def test_nan_is_not_hidden_and_stays_near():
    x, weight, bias = operands(1, 16, 16, 20, 20)
    x[0, 3, 10, 10] = torch.nan
    found = convolve(x, weight, bias, relu=True)
    assert found[0, :, 9:12, 9:12].isnan().all()
    assert not found[0, :, :6].isnan().any()


@needs_operator
def test_wrong_operands_are_refused():
    x, weight, bias = operands(1, 16, 32, 6, 6)
    packed = transform_kernels(weight)
    call = torch.ops.maskrcnn_plus.winograd_conv3x3
    for bad in ((x[0], packed, bias), (x[:, :8], packed, bias), (x, packed[:35], bias), (x, packed, bias[:16, None])):
        with pytest.raises(ValueError, match="winograd_conv3x3"):
            call(*bad, False)
    with pytest.raises(ValueError, match="multiples of 16"):
        call(torch.zeros(1, 24, 6, 6), torch.zeros(36, 1, 24, 32), bias, False)
    with pytest.raises(TypeError, match="float32"):
        call(x.double(), packed, bias, False)


@pytest.mark.usefixtures("_operators")
def test_opcheck():
    x, weight, bias = operands(2, 16, 48, 7, 9)
    arguments = (x, transform_kernels(weight), bias, True)
    results = torch.library.opcheck(torch.ops.maskrcnn_plus.winograd_conv3x3, arguments)
    assert set(results.values()) == {"SUCCESS"}


@needs_vectors
@pytest.mark.parametrize("norm", ["", "GN", "BN"])
@pytest.mark.parametrize("activation", [None, nn.ReLU(), F.relu, nn.SiLU()])
@pytest.mark.parametrize("bias", [True, False])
def test_module_does_what_detectron2s_does(norm, activation, bias):
    torch.manual_seed(0)
    conv = Conv2d(32, 64, 3, padding=1, bias=bias, norm=get_norm(norm, 64), activation=activation).eval()
    assert WinogradConv2d.takes(conv)
    x = torch.randn(2, 32, 10, 11)
    with torch.inference_mode():
        torch.testing.assert_close(WinogradConv2d(conv)(x), conv(x), atol=1e-5, rtol=1e-4)


class Scaled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


@needs_vectors
@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(32, 32, 3, padding=1, stride=2),
        nn.Conv2d(32, 32, 3, padding=1, groups=2),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2),
        nn.Conv2d(32, 32, 3),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(32, 24, 3, padding=1),
        nn.Conv2d(3, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1, dtype=torch.float64),
        nn.Conv2d(32, 32, 3, padding=1, device="meta"),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(32, 32, 3, padding=1)),
        nn.ConvTranspose2d(32, 32, 3, padding=1),
        Scaled(32, 32, 3, padding=1),
        nn.Identity(),
    ],
    ids=str,
)
def test_other_modules_are_left_alone(module):
    assert not WinogradConv2d.takes(module)
    assert WinogradConv2d.takes(nn.Conv2d(32, 32, 3, padding=1))


def gradients(convolution, x, weight, bias, cotangent):
    inputs = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    return torch.autograd.grad(convolution(*inputs), inputs, cotangent)


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (14, 14), (33, 50)])
@pytest.mark.parametrize("channels", [(16, 16), (48, 32), (32, 80)])
def test_gradients_equal_those_of_the_direct_convolution(size, channels):
    x, weight, bias = operands(2, *channels, *size)
    cotangent = torch.randn(2, channels[1], *size, generator=torch.Generator().manual_seed(1))
    exact = gradients(
        lambda x, w, b: F.conv2d(x, w, b, padding=1), x.double(), weight.double(), bias.double(), cotangent.double()
    )
    for memory_format in (torch.contiguous_format, torch.channels_last):
        maps = [tensor.contiguous(memory_format=memory_format) for tensor in (x, weight)]
        found = gradients(winograd.convolve, *maps, bias, cotangent.contiguous(memory_format=memory_format))
        for gradient, expected in zip(found, exact, strict=True):
            assert (gradient - expected).norm() < 3e-6 * expected.norm()


@needs_operator
def test_many_tiles_are_summed_in_parts_on_any_number_of_threads():
    x, weight, bias = operands(2, 256, 240, 60, 50)  # 390 tiles; 469 are too many for one part
    x = torch.cat([x, x.flip(3)])
    cotangent = torch.randn(4, 240, 60, 50, generator=torch.Generator().manual_seed(1))
    expected = gradients(lambda x, w, b: F.conv2d(x, w, b, padding=1), x, weight, bias, cotangent)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for gradient, reference in zip(
                gradients(winograd.convolve, x, weight, bias, cotangent), expected, strict=True
            ):
                assert (gradient - reference).norm() < 1e-5 * reference.norm()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("_operators")
def test_no_maps_give_no_gradients():
    x, weight, bias = operands(0, 16, 32, 6, 7)
    found = gradients(winograd.convolve, x, weight, bias, torch.zeros(0, 32, 6, 7))
    assert [gradient.shape for gradient in found] == [x.shape, weight.shape, bias.shape]
    assert not any(gradient.any() for gradient in found)


@needs_operator
def test_wrong_operands_of_a_gradient_are_refused():
    call = torch.ops.maskrcnn_plus.winograd_conv3x3_backward_weight
    x = torch.zeros(2, 16, 6, 6)
    for bad in (torch.zeros(2, 16, 6, 5), torch.zeros(1, 16, 6, 6), torch.zeros(2, 8, 6, 6), torch.zeros(16, 6, 6)):
        with pytest.raises(ValueError, match="winograd_conv3x3_backward_weight"):
            call(x, bad)
    with pytest.raises(TypeError, match="float32"):
        call(x, x.double())


@pytest.mark.usefixtures("_operators")
def test_opcheck_of_the_gradient():
    x, _, _ = operands(2, 16, 48, 7, 9)
    arguments = x, torch.randn(2, 48, 7, 9)
    results = torch.library.opcheck(torch.ops.maskrcnn_plus.winograd_conv3x3_backward_weight, arguments)
    assert set(results.values()) == {"SUCCESS"}
