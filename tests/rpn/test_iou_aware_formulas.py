"""Centerness, geometric mean and losses of the IoU-aware RPN against their formulas, in float64."""

import math

import pytest
import torch

from maskrcnn_plus.rpn.iou_aware import centerness, geometric_mean_logits, quality_loss


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_centerness_is_that_of_fcos():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(60, 2, generator=generator, dtype=torch.float64) * 20
    boxes = torch.cat([corner, corner + 1 + torch.rand(60, 2, generator=generator, dtype=torch.float64) * 20], 1)
    anchors = torch.cat([corner - 5, corner + 5 + torch.rand(60, 2, generator=generator) * 30], 1)
    expected, outside = [], 0
    for (ax0, ay0, ax1, ay1), (x0, y0, x1, y1) in zip(anchors.tolist(), boxes.tolist(), strict=True):
        x, y = (ax0 + ax1) / 2, (ay0 + ay1) / 2
        left, right, top, bottom = x - x0, x1 - x, y - y0, y1 - y
        inside = min(left, right, top, bottom) > 0
        outside += not inside
        ratio = min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)
        expected.append(math.sqrt(ratio) if inside else 0.0)
    assert 5 < outside < 55
    torch.testing.assert_close(centerness(anchors, boxes), torch.tensor(expected).double(), atol=1e-6, rtol=0)


def test_centerness_of_the_middle_the_border_and_a_point():
    boxes = torch.tensor([[0.0, 0, 8, 4], [0, 0, 8, 4], [0, 0, 8, 4], [4, 2, 4, 2]])
    anchors = torch.tensor([[2.0, 0, 6, 4], [-2, 0, 2, 4], [8, 0, 16, 4], [2, 0, 6, 4]])
    assert centerness(anchors, boxes).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert centerness(anchors[:0], boxes[:0]).shape == (0,)


def test_geometric_mean_in_logits():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 200, generator=generator, dtype=torch.float64) * 4
    expected = [math.sqrt(sigmoid(x) * sigmoid(y)) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    expected = [math.log(p / (1 - p)) for p in expected]
    torch.testing.assert_close(geometric_mean_logits(a, b), torch.tensor(expected).double(), atol=1e-6, rtol=0)


def test_geometric_mean_of_extreme_logits_stays_finite_and_ordered():
    x = torch.tensor([-500.0, -90.0, -20.0, 0.0, 20.0, 80.0])
    equal = geometric_mean_logits(x, x)
    torch.testing.assert_close(equal, x)  # the mean of a probability with itself
    assert geometric_mean_logits(torch.tensor(1000.0), torch.tensor(1000.0)).isfinite()
    certain = geometric_mean_logits(x, torch.full_like(x, 1000.0))
    assert (certain[1:] > certain[:-1]).all()
    bad = torch.tensor([float("nan"), float("inf"), -float("inf")])
    assert not geometric_mean_logits(bad, torch.zeros(3)).isfinite().any()
    assert not geometric_mean_logits(torch.zeros(3), bad).isfinite().any()
    assert geometric_mean_logits(x.bfloat16(), x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("kind", "beta"), [("bce", 0.0), ("smooth_l1", 0.0), ("smooth_l1", 0.3)])
def test_losses_equal_their_formulas(kind, beta):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.rand(40, generator=generator, dtype=torch.float64)
    expected = 0.0
    for x, q in zip(logits.tolist(), targets.tolist(), strict=True):
        p = sigmoid(x)
        if kind == "bce":
            expected -= q * math.log(p) + (1 - q) * math.log(1 - p)
        else:
            d = abs(p - q)
            expected += d**2 / (2 * beta) if d < beta else d - beta / 2
    assert quality_loss(logits, targets, kind, beta).item() == pytest.approx(expected, abs=1e-6)
    assert torch.autograd.gradcheck(lambda x: quality_loss(x, targets, kind, beta), logits)
    empty = quality_loss(logits[:0], targets[:0], kind, beta)
    assert empty.item() == 0
    assert torch.autograd.grad(empty, logits)[0].tolist() == [0.0] * 40
