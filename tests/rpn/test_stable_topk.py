"""The largest values of rows: a stable sort, cut off."""

import pytest
import torch

from maskrcnn_plus.rpn.batched import stable_topk


def sorted_in_python(row, k):
    """Places of the largest values of a list, the first of equal ones."""
    return sorted(range(len(row)), key=lambda place: (-row[place], place))[:k]


@pytest.mark.parametrize("k", [1, 7, 40, 99, 100, 101, 500])
@pytest.mark.parametrize("distinct", [1, 2, 5, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_stable_sort(k, distinct, dtype):
    generator = torch.Generator().manual_seed(k)
    values = torch.randint(0, distinct, (3, 100), generator=generator).to(dtype)
    best, places = stable_topk(values, k)
    expected = [sorted_in_python(row, k) for row in values.tolist()]
    assert places.tolist() == expected
    assert torch.equal(best, values.gather(1, places))


def test_infinite_values_and_nans():
    values = torch.randn(4, 60, generator=torch.Generator().manual_seed(0))
    values[0, ::7], values[1, ::3], values[2] = float("nan"), float("-inf"), float("nan")
    for k in (2, 9, 30, 60):
        assert stable_topk(values, k)[1].tolist() == values.argsort(dim=1, descending=True, stable=True)[:, :k].tolist()


@pytest.mark.parametrize(("shape", "k"), [((0, 5), 3), ((2, 0), 3)])
def test_nothing(shape, k):
    best, places = stable_topk(torch.rand(shape), k)
    assert best.shape == places.shape == (shape[0], min(k, shape[1]))


def test_gradients():
    values = torch.randn(3, 20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: stable_topk(values, 6)[0], values)
