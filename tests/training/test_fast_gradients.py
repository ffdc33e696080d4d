"""Faster gradients of convolutions in bfloat16: the same outputs, and gradients as a float64 convolution has them."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, get_norm
from timm.layers import Conv2dSame
from torch import nn

from maskrcnn_plus.backbones import TimmBackbone
from maskrcnn_plus.ops.winograd import is_fast
from maskrcnn_plus.training.fast_gradients import use_fast_convolutions, use_fast_gradients, use_winograd
from maskrcnn_plus.training.loop import Trainer

DEPTHWISE = {
    "stride 2": lambda: nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6, bias=False),
    "5 x 5": lambda: nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False),
    "7 x 7 with bias": lambda: nn.Conv2d(6, 6, 7, padding=3, groups=6),
    "dilated": lambda: nn.Conv2d(6, 6, (5, 3), stride=(1, 2), padding=(4, 2), dilation=2, groups=6),
    "same padding": lambda: Conv2dSame(6, 6, 5, stride=2, groups=6, bias=False),
}
UPSAMPLING = {
    "2 x 2": lambda: nn.ConvTranspose2d(5, 7, 2, 2),
    "3 x 3 without bias": lambda: nn.ConvTranspose2d(5, 7, 3, 3, bias=False),
    "1 x 1": lambda: nn.ConvTranspose2d(5, 7, 1, 1),
}
ALL = {**DEPTHWISE, **UPSAMPLING}
OTHERS = {
    "fast depthwise": lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6),
    "full": lambda: nn.Conv2d(6, 6, 5, stride=2),
    "grouped": lambda: nn.Conv2d(6, 6, 5, groups=2),
    "depth multiplier": lambda: nn.Conv2d(6, 12, 5, groups=6),
    "named padding": lambda: nn.Conv2d(6, 6, 5, padding="same", groups=6),
    "circular": lambda: nn.Conv2d(6, 6, 5, padding=2, padding_mode="circular", groups=6),
    "float64": lambda: nn.Conv2d(6, 6, 5, groups=6).double(),
    "overlapping": lambda: nn.ConvTranspose2d(5, 7, 3, 2),
    "padded": lambda: nn.ConvTranspose2d(5, 7, 2, 2, padding=1),
    "grouped upsampling": lambda: nn.ConvTranspose2d(6, 6, 2, 2, groups=2),
    "subclass": lambda: type("Own", (nn.Conv2d,), {})(6, 6, 5, groups=6),
}


def _make(name):
    torch.manual_seed(0)
    conv = ALL[name]()
    x = torch.randn(3, conv.in_channels, 9, 12).bfloat16()
    return conv, x


def _fast(conv):
    conv = copy.deepcopy(conv)
    assert use_fast_gradients(conv) == 1
    return conv


def _run(conv, x, grad=None, autocast=True):
    """Output and gradients of input, weight and, where there is one, bias."""
    x = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = conv(x)
    if grad is None:
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    y.backward(grad.to(y.dtype))
    return y.detach(), grad, [x.grad, *(p.grad for p in conv.parameters())]


@pytest.mark.parametrize("name", ALL)
def test_outputs_are_those_of_the_plain_convolution(name):
    conv, x = _make(name)
    expected, _, _ = _run(conv, x)
    y, _, _ = _run(_fast(conv), x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_those_of_float64(name):
    conv, x = _make(name)
    with torch.no_grad():  # weights that bfloat16 holds exactly
        for parameter in conv.parameters():
            parameter.copy_(parameter.bfloat16())
    fast = _fast(conv)
    _, grad, gradients = _run(fast, x)
    _, _, expected = _run(copy.deepcopy(conv).double(), x.double(), grad, autocast=False)
    assert gradients[0].dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in gradients[1:])
    for found, reference in zip(gradients, expected, strict=True):
        # Depthwise weights: sums in float32. Else: one rounding to bfloat16, of 8 bits.
        exact = name in DEPTHWISE and found.dtype == torch.float32
        error = (found.double() - reference).abs().max() / reference.abs().max()
        assert error < (1e-6 if exact else 2**-8)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["same padding", "2 x 2"])
def test_layouts_agree(name, layout):
    conv, x = _make(name)
    _, grad, expected = _run(_fast(conv), x)
    _, _, gradients = _run(_fast(conv).to(memory_format=layout), x.contiguous(memory_format=layout), grad)
    for found, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, reference, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_no_maps_give_no_gradients(name):
    conv, x = _make(name)
    y, _, gradients = _run(_fast(conv), x[:0])
    assert len(y) == 0
    assert len(gradients[0]) == 0
    assert all(gradient.count_nonzero() == 0 for gradient in gradients[1:])


@pytest.mark.parametrize("name", ["5 x 5", "2 x 2"])
def test_frozen_parts_get_no_gradient(name):
    conv, x = _make(name)
    fast = _fast(conv)
    fast.weight.requires_grad_(False)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        fast(x).float().sum().backward()
    assert fast.weight.grad is None
    assert x.grad is not None
    other = _fast(conv)
    with torch.autocast("cpu", torch.bfloat16):
        other(x.detach()).float().sum().backward()
    assert other.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ALL)
def test_without_autocast_or_gradients_nothing_changes(name):
    conv, x = _make(name)
    fast = _fast(conv)
    assert torch.equal(fast(x.float()), conv(x.float()))
    expected, found = (_run(each, x.float(), autocast=False)[2] for each in (conv, fast))
    assert all(map(torch.equal, found, expected))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), conv(x))


@pytest.mark.parametrize("name", OTHERS)
def test_other_convolutions_stay(name):
    conv = OTHERS[name]()
    kind = type(conv)
    assert use_fast_gradients(conv) == 0
    assert type(conv) is kind


def test_a_shared_weight_gets_the_gradient_of_every_use():
    """A rounded copy that autocast kept from the first use would lose the second."""
    torch.manual_seed(0)
    conv, x = _make("5 x 5")
    plain = nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False)
    fast = _fast(conv)
    plain.weight = fast.weight
    with torch.autocast("cpu", torch.bfloat16):
        (fast(x).float().sum() + plain(x).float().sum()).backward()
    both = fast.weight.grad.clone()
    fast.weight.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        fast(x).float().sum().backward()
    once = fast.weight.grad
    # Each use rounds to bfloat16 in its own way; a lost one would be a difference of the gradient itself.
    torch.testing.assert_close(both, 2 * once, rtol=0, atol=2e-2 * once.abs().max().item())


def test_wrong_channels_are_named():
    conv, x = _make("2 x 2")
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="channels"):
        _fast(conv)(x[:, :3])


class _Losses(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = TimmBackbone("tf_efficientnet_lite0")

    def forward(self, x):
        return {"loss": sum(feature.float().square().mean() for feature in self.backbone(x).values())}


def _gradients(model, x, autocast):
    model = copy.deepcopy(model).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(x)["loss"].backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_gradients_of_a_backbone_are_as_good_as_autocast_ones():
    torch.manual_seed(0)
    model, x = _Losses(), torch.randn(2, 3, 64, 96)
    names = list(model.state_dict())
    reference, plain = _gradients(model, x, False), _gradients(model, x, True)
    assert use_fast_gradients(model) == 11
    assert list(model.state_dict()) == names
    found = _gradients(model, x, True)
    assert (found - reference).norm() < 1.1 * (plain - reference).norm()


@pytest.mark.parametrize(("dtype", "changed"), [("bfloat16", 0), (None, 11)])
def test_the_trainer_uses_them_under_bfloat16_only(dtype, changed):
    model = _Losses()
    Trainer(model, [], torch.optim.SGD(model.parameters(), lr=0.1), amp_dtype=dtype)
    assert use_fast_gradients(model) == changed  # those that were left


def _make_3x3():
    torch.manual_seed(0)
    own = Conv2d(32, 64, 3, padding=1, norm=get_norm("GN", 64), activation=nn.ReLU())
    return nn.Sequential(own, nn.Conv2d(64, 16, 3, padding=1, bias=False)), torch.randn(2, 32, 40, 30)


@pytest.mark.skipif(not is_fast(), reason="the operator, or a processor with AVX2, is missing")
def test_3_x_3_convolutions_train_by_winograd_in_float32():
    model, x = _make_3x3()
    fast = copy.deepcopy(model)
    assert use_fast_convolutions(fast, None) == 2
    assert list(fast.state_dict()) == list(model.state_dict())
    assert use_fast_convolutions(copy.deepcopy(fast), None) == 0
    expected, grad, references = _run(copy.deepcopy(model).double(), x.double(), autocast=False)
    y, _, gradients = _run(fast, x, grad, autocast=False)
    assert not torch.equal(y, model(x))  # another order of sums
    for found, reference in zip([y, *gradients], [expected, *references], strict=True):
        assert (found - reference).norm() < 1e-5 * reference.norm()


@pytest.mark.skipif(not is_fast(), reason="the operator, or a processor with AVX2, is missing")
def test_winograd_is_for_training_in_float32_on_many_pixels():
    model, x = _make_3x3()
    fast = copy.deepcopy(model)
    use_winograd(fast)
    with torch.no_grad():
        assert torch.equal(fast(x), model(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), model(x))
    assert torch.equal(fast(x[:, :, :20]), model(x[:, :, :20]))
    assert torch.equal(fast.double()(x.double()), model.double()(x.double()))
