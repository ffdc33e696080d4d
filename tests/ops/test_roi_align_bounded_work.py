"""The work and the memory of a box are bounded by its map or image, wherever it lies and however large it is."""

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from maskrcnn_plus.masks import paste_masks_rle
from maskrcnn_plus.masks.label_map import masks_to_rles
from maskrcnn_plus.ops import extension
from maskrcnn_plus.ops.paste_masks_rle_reference import paste_masks_dense, paste_masks_rle_reference
from maskrcnn_plus.ops.roi_align_reference import roi_align_reference
from maskrcnn_plus.roi import roi_align, roi_align_pyramid

needs_extension = pytest.mark.skipif(not extension.is_available(), reason=extension.why_missing())
HUGE = [1e6, 3e7, 1e9, 1e15, 1e18, 1e30, 3e38]
SECONDS = 200  # where the work is not bounded, it is years


def huge_boxes():
    rows = []
    for size in HUGE:
        rows += [
            [-size, -size, size, size],
            [0, 0, size, 30],
            [-size, 3, 20, 21],
            [size, size, 1.1 * size if size < 1e38 else size, size],
            [-size, -3, -size / 2, 20],
            [size, 5, -size, 9],
        ]
    return torch.cat([torch.zeros(len(rows), 1), torch.tensor(rows)], dim=1)


@needs_extension
def test_the_operators_end_for_boxes_as_far_as_numbers_go_and_images_of_many_rows():
    """In a process of its own: a loop without an end is a failure and no hang, and its memory is its own."""
    code = "check_huge(); print(paste_memory(True), paste_memory(False))"
    script = f"import runpy; globals().update(runpy.run_path({__file__!r})); {code}"
    command = [sys.executable, "-W", "ignore", "-c", script]
    root = Path(__file__).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=root)
    assert result.returncode == 0, result.stderr
    compiled, reference = map(float, result.stdout.split())
    assert compiled < 2  # bytes a pixel
    assert reference < 24


def check_huge():
    torch.manual_seed(0)
    boxes = huge_boxes()
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        maps = torch.randn(1, 2, 12, 9).to(dtype).requires_grad_()
        rois = boxes.to(torch.promote_types(dtype, torch.float32))
        for ratio in (0, 2):
            for scale in (0.25, 3.0, 1e30):
                output = roi_align(maps, rois, 3, scale, ratio)
                assert output.isfinite().all()
                assert torch.autograd.grad(output.sum(), maps)[0].isfinite().all()
            expected = roi_align_reference(maps.double(), rois.double(), (3, 3), 0.25, ratio)
            # Coordinates beyond 2**24 have no pixel in float32; from there on the samples are too many to weigh much.
            tolerance = {torch.float32: 2e-3, torch.float64: 1e-3, torch.bfloat16: 2e-2}[dtype]
            torch.testing.assert_close(roi_align(maps, rois, 3, 0.25, ratio).double(), expected, atol=tolerance, rtol=0)


@pytest.mark.usefixtures("_operators")
def test_large_boxes_take_the_time_of_the_map():
    torch.manual_seed(0)
    maps = torch.randn(1, 8, 60, 60)
    large = torch.tensor([[0, -1e9, -1e9, 1e9, 1e9], [0, 0, 0, 1e6, 1e6], [0, -5e5, 10, 5e5, 1e6]])
    usual = torch.tensor([[0, 0.0, 0, 230, 230]]).repeat(3, 1)
    times = []
    for rois in (large, usual):
        runs = []
        for _ in range(5):
            start = time.process_time()
            roi_align(maps, rois, 7, 0.25)
            runs.append(time.process_time() - start)
        times.append(sorted(runs)[2])
    assert times[0] < 50 * times[1] + 0.3
    expected = roi_align_reference(maps.double(), large.double(), (7, 7), 0.25)
    torch.testing.assert_close(roi_align(maps, large, 7, 0.25).double(), expected, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("_operators")
def test_boxes_too_large_for_a_kernel_stand_among_others_and_differentiate():
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 12, 12, requires_grad=True), torch.randn(2, 3, 6, 6, requires_grad=True)]
    rois = torch.tensor([[0, 1.0, 2, 30, 40], [1, -1e5, 0, 2e5, 40], [0, 3, 3, 40, 44], [0, 0, 0, 1e5, 1e5]])
    levels = torch.tensor([1, 0, 0, 1])
    output = roi_align_pyramid(maps, rois, levels, 3, [0.25, 0.125])
    doubles = [each.detach().double().requires_grad_() for each in maps]
    expected = torch.cat(
        [
            roi_align_reference(doubles[level], rois[k : k + 1].double(), (3, 3), 0.25 / 2**level)
            for k, level in enumerate(levels.tolist())
        ]
    )
    torch.testing.assert_close(output.double(), expected, atol=1e-4, rtol=0)
    cotangent = torch.randn_like(output)
    gradients = torch.autograd.grad(output, maps, cotangent), torch.autograd.grad(expected, doubles, cotangent.double())
    for found, true in zip(*gradients, strict=True):
        torch.testing.assert_close(found.double(), true, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize("ratio", [4097, 2**31, 2**40, 2**62])
def test_more_samples_than_anyone_waits_for_are_refused(ratio):
    with pytest.raises(ValueError, match=r"sampling_ratio .* must be at most 4096"):
        roi_align(torch.zeros(1, 1, 4, 4), torch.tensor([[0, 0.0, 0, 4, 4]]), 2, 1.0, ratio)


@pytest.mark.usefixtures("_operators")
def test_many_samples_are_the_integral():
    torch.manual_seed(0)
    maps = torch.randn(1, 2, 6, 6)
    rois = torch.tensor([[0, 1.0, 1.3, 4.2, 5]])
    expected = roi_align_reference(maps.double(), rois.double(), (2, 2), 1.0, 300)
    torch.testing.assert_close(roi_align(maps, rois, 2, 1.0, 4096).double(), expected, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize(
    ("rois", "levels", "message"),
    [
        ([[0, 0.0, 0, 1, 1], [0, torch.nan, 0, 1, 1]], [0, 0], "RoI 1 is not finite"),
        ([[0, 0.0, 0, torch.inf, 1]], [0], "RoI 0 is not finite"),
        ([[1, 0.0, 0, 1, 1]], [0], r"batch index 1 of RoI 0 is outside \[0, 1\)"),
        ([[-1, 0.0, 0, 1, 1]], [0], r"batch index -1 of RoI 0"),
        ([[0, 0.0, 0, 1, 1], [0, 0, 0, 1, 1]], [0, 2], r"level 2 of RoI 1 is outside \[0, 2\)"),
        ([[0, 0.0, 0, 1, 1]], [-1], "level -1 of RoI 0"),
        ([[0, 0.0, 0, 1, 1]], [0, 1], "one entry a RoI"),
        ([[0, 0.0, 0, 1]], [0], r"\[K, 5\]"),
    ],
)
def test_the_fallback_refuses_what_the_operator_refuses(rois, levels, message):
    """Torchvision's kernel reads beyond the maps there."""
    maps = [torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 4, 4)]
    with pytest.raises(ValueError, match=message):
        roi_align_pyramid(maps, torch.tensor(rois), torch.tensor(levels), 2, [0.25, 0.125])


@pytest.mark.usefixtures("_operators")
def test_maps_without_a_box_are_part_of_the_graph():
    maps = [torch.zeros(1, 2, 8, 8, requires_grad=True), torch.zeros(1, 2, 4, 4, requires_grad=True)]
    for rois, levels in (
        (torch.tensor([[0, 0.0, 0, 9, 9]]), torch.tensor([0])),
        (torch.zeros(0, 5), torch.zeros(0).long()),
    ):
        output = roi_align_pyramid(maps, rois, levels, 2, [0.25, 0.125])
        assert all(grad is not None for grad in torch.autograd.grad(output.sum(), maps))


def paste_memory(compiled):
    """Bytes a pixel that pasting one mask into an image of one column takes."""
    if not compiled:
        extension._why_missing, extension._warned = "switched off", True
    rows = 6_000_000
    probs, box = torch.rand(1, 28, 28), torch.tensor([[0.0, 0.0, 1.0, float(rows)]])
    paste_masks_rle(probs, box, 10, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (rle,) = paste_masks_rle(probs, box, rows, 1)
    assert rle["size"] == [rows, 1]
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / rows


@needs_extension
def test_tall_images_have_the_pixels_of_the_reference():
    torch.manual_seed(0)
    height, width = 70_000, 5  # higher than the operator keeps samples of rows
    probs = torch.rand(3, 7, 5)
    boxes = torch.tensor([[0.3, -20.5, 4.6, 70_010.2], [1.0, 3.5, 3.0, 69_000.0], [2.0, 60_000.0, 1.5, 100.0]])
    found = paste_masks_rle(probs, boxes, height, width)
    assert found == paste_masks_rle_reference(probs, boxes, height, width)
    assert found[:2] == masks_to_rles(paste_masks_dense(probs[:2], boxes[:2], height, width))
