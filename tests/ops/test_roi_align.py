"""The RoIAlign operator: exact, differentiable, deterministic, and safe on bad input."""

import os
import random
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import roi_align as torchvision_roi_align

from maskrcnn_plus.ops import extension
from maskrcnn_plus.ops.roi_align import roi_align
from maskrcnn_plus.ops.roi_align_reference import roi_align_reference

needs_extension = pytest.mark.skipif(not extension.is_available(), reason=extension.why_missing())
CASES = 520


def random_case(seed):
    """A map, boxes of all kinds (inside, across every border, outside, tiny, huge, inverted), and options."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    images, channels = rng.choice([1, 2, 3]), rng.choice([1, 2, 7, 16, 40, 96, 131])
    height, width, count = rng.randint(1, 40), rng.randint(1, 50), rng.randint(0, 10)
    stride = rng.choice([1, 4, 8, 32])
    input = torch.randn(images, channels, height, width, dtype=rng.choice([torch.float32, torch.float64]))
    if rng.random() < 0.5:
        input = input.to(memory_format=torch.channels_last)
    centre = (torch.rand(count, 2) * 1.4 - 0.2) * torch.tensor([width, height]) * stride
    side = torch.rand(count, 2) * stride * rng.choice([0.5, 4, 20, 100]) - stride * rng.choice([0, 0, 2])
    index = torch.randint(0, images, (count, 1)).float()
    rois = torch.cat([index, centre - side / 2, centre + side / 2], dim=1).to(input.dtype)
    options = {
        "output_size": rng.choice([(7, 7), (14, 14), (3, 5), (1, 1)]),
        "spatial_scale": 1 / stride,
        "sampling_ratio": rng.randint(0, 4),
        "aligned": rng.random() < 0.5,
    }
    return input, rois, options


@pytest.mark.parametrize("part", range(4))
def test_equals_torchvision_and_the_reference_on_random_cases(part):
    for seed in range(part * CASES // 4, (part + 1) * CASES // 4):
        input, rois, options = random_case(seed)
        input.requires_grad_()
        output = roi_align(input, rois, **options)
        # Of inverted boxes torchvision allocates a negative number of samples, and fails.
        inverted = bool((rois[:, 3:] < rois[:, 1:3]).any()) and options["aligned"] and options["sampling_ratio"] == 0
        expected = (roi_align_reference if inverted else torchvision_roi_align)(input, rois, **options)
        atol = 1e-4 if input.dtype == torch.float32 else 1e-11
        torch.testing.assert_close(output, expected, atol=atol, rtol=0, msg=lambda m, s=seed: f"case {s}: {m}")
        cotangent = torch.randn_like(expected)
        gradient, expected_gradient = (torch.autograd.grad(o, input, cotangent)[0] for o in (output, expected))
        scale = max(1.0, expected_gradient.abs().max().item())
        torch.testing.assert_close(gradient, expected_gradient, atol=atol * scale, rtol=0)
        if seed % 8 == 0 and len(rois):
            truth = roi_align_reference(input.double(), rois.double(), **options)
            torch.testing.assert_close(output.double(), truth, atol=atol, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [True, False])
def test_half_precision_accumulates_in_float32(dtype, channels_last):
    torch.manual_seed(0)
    input = torch.randn(2, 70, 20, 30).to(dtype)
    if channels_last:
        input = input.to(memory_format=torch.channels_last)
    rois = torch.tensor([[0, 3.0, 5, 90, 70], [1, -20, -3, 33, 200], [1, 40, 40, 47, 49]])
    wide = input.float().requires_grad_()
    input.requires_grad_()
    output, expected = roi_align(input, rois, 7, 0.25), roi_align(wide, rois, 7, 0.25)
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected.to(dtype), atol=0, rtol=0)
    (gradient,) = torch.autograd.grad(output.float().sum(), input)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), wide)
    torch.testing.assert_close(gradient, expected_gradient.to(dtype), atol=0, rtol=0)


def test_memory_format_is_kept_and_any_strides_are_read():
    torch.manual_seed(0)
    base = torch.randn(2, 12, 10, 14)
    rois = torch.tensor([[0, 1.0, 2, 30, 35], [1, 3, -4, 20, 50]])
    expected = roi_align(base, rois, 5, 0.25)
    assert expected.is_contiguous()
    last = roi_align(base.to(memory_format=torch.channels_last), rois, 5, 0.25)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, expected)
    strided = torch.randn(2, 24, 10, 28)
    strided[:, ::2, :, ::2] = base
    assert torch.equal(roi_align(strided[:, ::2, :, ::2], rois, 5, 0.25), expected)
    assert torch.equal(roi_align(base.flip(3).flip(3), rois.flip(1).flip(1), 5, 0.25), expected)


@pytest.mark.parametrize("channels_last", [True, False])
def test_gradients_in_float64(channels_last):
    torch.manual_seed(0)
    input = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    if channels_last:
        input = input.to(memory_format=torch.channels_last)
    input.requires_grad_()
    rois = torch.tensor([[0, 1.0, 2, 30, 20], [1, -3, -4, 60, 10], [0, 5, 5, 5, 5]], dtype=torch.float64)

    def align(x):
        return roi_align(x, rois, (3, 2), 0.25)

    assert torch.autograd.gradcheck(align, input)
    assert torch.autograd.gradgradcheck(align, input)


def test_backward_is_bit_identical_for_any_number_of_threads():
    torch.manual_seed(0)
    rois = torch.cat([torch.zeros(300, 1), torch.rand(300, 2) * 100, 100 + torch.rand(300, 2) * 100], dim=1)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 2, 1):
            torch.set_num_threads(number)
            input = torch.ones(1, 80, 50, 50).to(memory_format=torch.channels_last).requires_grad_()
            output = roi_align(input, rois, 7, 0.25)
            cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
            results.append((output.detach(), torch.autograd.grad(output, input, cotangent)[0]))
    finally:
        torch.set_num_threads(threads)
    for output, gradient in results[1:]:
        assert torch.equal(output, results[0][0])
        assert torch.equal(gradient, results[0][1])


def run_with_instructions(limit, path):
    """What the operator gives in a process that may use these instructions, "" for all; and what it says of them."""
    code = (
        "import sys, torch; from maskrcnn_plus.roi import roi_align; torch.manual_seed(0)\n"
        "x = torch.randn(1, 147, 20, 30).to(memory_format=torch.channels_last).requires_grad_()\n"
        "rois = torch.cat([torch.zeros(20, 1), torch.rand(20, 2) * 60, 60 + torch.rand(20, 2) * 60], dim=1)\n"
        "y = roi_align(x, rois, 7, 0.25); y.square().sum().backward()\n"
        "z = roi_align(x.double(), rois.double(), 7, 0.25)\n"
        "torch.save([y.detach(), x.grad, z.detach()], sys.argv[1])\n"
        "print(torch.ops.maskrcnn_plus.cpu_capability())"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": limit}
    if not limit:
        environment.pop("ATEN_CPU_CAPABILITY")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(path)], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return torch.load(path, weights_only=True), result.stdout.strip()


@pytest.fixture(scope="module")
def widest(tmp_path_factory):
    return run_with_instructions("", tmp_path_factory.mktemp("widest") / "outputs.pt")[0]


@needs_extension
@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_every_instruction_set_gives_the_same(capability, tmp_path, widest):
    outputs, used = run_with_instructions(capability, tmp_path / "outputs.pt")
    assert used in (capability.upper(), "DEFAULT")
    for limited, expected in zip(outputs, widest, strict=True):
        torch.testing.assert_close(limited, expected, atol=1e-5, rtol=1e-5)


def test_hand_computed_case_of_detectron2():
    """Detectron2's tests/layers/test_roi_align.py: a ramp is reproduced at the bins' centres."""
    input = torch.arange(25.0).reshape(1, 1, 5, 5)
    rois = torch.tensor([[0, 1.0, 1, 3, 3]])
    shifted = torch.tensor(
        [[4.5, 5.0, 5.5, 6.0], [7.0, 7.5, 8.0, 8.5], [9.5, 10.0, 10.5, 11.0], [12.0, 12.5, 13.0, 13.5]]
    )
    torch.testing.assert_close(roi_align(input, rois, (4, 4), 1.0, 0, True)[0, 0], shifted)
    torch.testing.assert_close(roi_align(input, rois, (4, 4), 1.0, 0, False)[0, 0], shifted + 3)


def test_resized_map_gives_the_same_for_resized_boxes():
    torch.manual_seed(0)
    ramp = (torch.arange(40.0)[:, None] * 0.3 + torch.arange(30.0) * 0.7)[None, None]
    doubled = F.interpolate(ramp, scale_factor=2, mode="bilinear", align_corners=False)
    rois = torch.tensor([[0, 6.0, 8, 20, 30]])
    small, large = roi_align(ramp, rois, 7, 1.0), roi_align(doubled, rois * 2, 7, 1.0)
    torch.testing.assert_close(small, large, atol=1e-4, rtol=0)


def test_one_sample_a_bin_equals_grid_sample():
    torch.manual_seed(0)
    input = torch.randn(1, 3, 20, 24)
    x0, y0, x1, y1 = 3.2, 4.7, 17.9, 15.1
    output = roi_align(input, torch.tensor([[0, x0, y0, x1, y1]]), (6, 5), 1.0, 1, True)
    ys = y0 + (torch.arange(6) + 0.5) / 6 * (y1 - y0)
    xs = x0 + (torch.arange(5) + 0.5) / 5 * (x1 - x0)
    grid = torch.stack(torch.meshgrid(xs / 24 * 2 - 1, ys / 20 * 2 - 1, indexing="xy"), dim=-1)[None]  # [1, 6, 5, 2]
    torch.testing.assert_close(output, F.grid_sample(input, grid, align_corners=False), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (0, 3, 5, 6), (2, 0, 5, 6)])
def test_no_boxes_and_empty_maps(shape):
    input = torch.randn(shape, requires_grad=True)
    output = roi_align(input, torch.zeros(0, 5), (4, 7))
    assert output.shape == (0, shape[1], 4, 7)
    output.sum().backward()
    assert torch.equal(input.grad, torch.zeros_like(input))


def test_boxes_of_extreme_size_and_place_equal_torchvision():
    torch.manual_seed(0)
    input = torch.randn(1, 2, 12, 9)
    rois = torch.tensor(
        [
            [0, -2e3, -2e3, 2e3, 2e3],
            [0, 0, 0, 1e6, 30],
            [0, 1e6, 1e6, 1.001e6, 1.001e6],
            [0, 7, 7, 7, 7],
            [0, -50, -50, -10, -10],
        ]
    )
    for aligned in (True, False):
        expected = torchvision_roi_align(input, rois, 3, 0.25, 0, aligned)
        torch.testing.assert_close(roi_align(input, rois, 3, 0.25, 0, aligned), expected, atol=1e-4, rtol=0)
    # Where torchvision runs out of memory, the reference knows.
    huge = torch.tensor([[0, -1e6, -1e6, 1e6, 1e6], [0, -3e5, 0, 7e5, 40]])
    expected = roi_align_reference(input, huge, (3, 3), 0.25)
    torch.testing.assert_close(roi_align(input, huge, 3, 0.25), expected, atol=1e-4, rtol=0)
    inverted = torch.tensor([[0, 5, 5, -1e6, -1e6], [0, 5, 5, -1e6, 30]])
    assert torch.equal(roi_align(input, inverted, 3, 0.25), torch.zeros(2, 2, 3, 3))
    astronomical = torch.tensor([[0, -1e30, -1e30, 1e30, 1e30]])
    assert torch.isfinite(roi_align(input, astronomical, 3, 0.25)).all()


def test_list_of_boxes_equals_the_tensor():
    torch.manual_seed(0)
    input = torch.randn(3, 4, 8, 8)
    boxes = [torch.tensor([[1.0, 2, 9, 12]]), torch.zeros(0, 4), torch.tensor([[0.0, 0, 5, 5], [3, 3, 20, 9]])]
    rois = torch.tensor([[0, 1.0, 2, 9, 12], [2, 0, 0, 5, 5], [2, 3, 3, 20, 9]])
    assert torch.equal(roi_align(input, boxes, 3, 0.5), roi_align(input, rois, 3, 0.5))
