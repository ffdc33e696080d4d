"""The operators on a GPU: exact, deterministic, without waiting, and the same under every rule of PyTorch."""

import pytest
import torch
from torchvision.ops import nms

from maskrcnn_plus.masks import paste_masks_rle
from maskrcnn_plus.ops.nms import batched_nms
from maskrcnn_plus.ops.roi_align import roi_align, roi_align_pyramid
from maskrcnn_plus.ops.roi_align_reference import roi_align_reference

SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def scene(dtype=torch.float32, channels=40, boxes=60, channels_last=True, seed=0):
    """Maps of two images of 256 x 320 px, boxes of all sizes across their borders, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, channels, int(256 * s), int(320 * s), generator=generator).to(dtype) for s in SCALES]
    if channels_last:
        maps = [each.contiguous(memory_format=torch.channels_last) for each in maps]
    side = 2 ** (torch.rand(boxes, 2, generator=generator) * 6 + 2)
    centre = torch.rand(boxes, 2, generator=generator) * torch.tensor([320.0, 256])
    index = torch.randint(0, 2, (boxes, 1), generator=generator).float()
    rois = torch.cat([index, centre - side / 2, centre + side / 2], dim=1)
    levels = torch.randint(0, 4, (boxes,), generator=generator)
    return maps, rois.to(torch.promote_types(dtype, torch.float32)), levels


def to_gpu(maps, *others):
    return [each.cuda().requires_grad_() for each in maps], *(other.cuda() for other in others)


def truth(maps, rois, levels, size, ratio, aligned):
    """Bins and gradients of their sum weighted by `cotangent`, in float64, by the reference."""
    exact = [each.detach().cpu().double().requires_grad_() for each in maps]
    rows = [
        roi_align_reference(exact[level], roi[None].double(), size, SCALES[level], ratio, aligned)
        for roi, level in zip(rois.cpu(), levels.tolist(), strict=True)
    ]
    return exact, torch.cat(rows)


def relative(found, expected):
    return ((found.cpu().double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("size", "ratio", "aligned"), [((7, 7), 0, True), ((14, 14), 2, True), ((3, 5), 0, False)])
def test_roi_align_and_its_gradient_equal_the_reference(dtype, channels_last, size, ratio, aligned):
    maps, rois, levels = scene(dtype, channels_last=channels_last)
    maps, rois, levels = to_gpu(maps, rois, levels)
    output = roi_align_pyramid(maps, rois, levels, size, SCALES, ratio, aligned)
    exact, expected = truth(maps, rois, levels, size, ratio, aligned)
    assert output.dtype == dtype
    assert output.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert relative(output, expected) < ROUNDING[dtype]
    cotangent = torch.randn_like(output)
    gradients = torch.autograd.grad(output, maps, cotangent)
    for found, wanted in zip(gradients, torch.autograd.grad(expected, exact, cotangent.cpu().double()), strict=True):
        assert found.dtype == dtype
        assert relative(found, wanted) < 2 * ROUNDING[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_keeps_maps_and_widens_boxes(dtype):
    maps, rois, levels = scene(dtype)
    maps, rois, levels = to_gpu(maps, rois, levels)
    mixed = [maps[0].detach().float().requires_grad_(), *maps[1:]]
    with torch.autocast("cuda", dtype):
        output = roi_align_pyramid(maps, rois, levels, 7, SCALES)
        widest = roi_align_pyramid(mixed, rois, levels, 7, SCALES)
    assert (output.dtype, widest.dtype) == (dtype, torch.float32)
    assert torch.equal(output, roi_align_pyramid(maps, rois, levels, 7, SCALES))
    gradients = torch.autograd.grad(widest.sum(), mixed)
    assert [gradient.dtype for gradient in gradients] == [torch.float32, dtype, dtype, dtype]


@pytest.mark.parametrize("deterministic", [False, True])
def test_results_are_bit_identical_from_run_to_run(deterministic):
    maps, rois, levels = to_gpu(*scene(boxes=400, channels=96))
    results = []
    torch.use_deterministic_algorithms(deterministic)
    try:
        for _ in range(4):
            output = roi_align_pyramid(maps, rois, levels, 7, SCALES)
            cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).cuda()
            results.append([output, *torch.autograd.grad(output, maps, cotangent)])
    finally:
        torch.use_deterministic_algorithms(False)
    for others in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(others, results[0], strict=True))


def test_the_memory_of_the_backward_is_its_result():
    """Torchvision's deterministic way holds every sample of every box: here 12 GB."""
    maps, rois, levels = to_gpu(*scene(boxes=2000, channels=64))
    torch.use_deterministic_algorithms(True)
    try:
        output = roi_align_pyramid(maps, rois, levels, 7, SCALES)
        cotangent = torch.randn_like(output)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients = torch.autograd.grad(output, maps, cotangent)
        peak = torch.cuda.max_memory_allocated() - before
    finally:
        torch.use_deterministic_algorithms(False)
    own = sum(gradient.nbytes for gradient in gradients)
    assert peak < own + 2**20


def test_nothing_waits_for_the_gpu(no_sync):
    with no_sync, pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(1, device="cuda").item()
    for channels_last in (True, False):
        maps, rois, levels = to_gpu(*scene(channels_last=channels_last))
        cotangent = torch.randn(60, 40, 7, 7, device="cuda")
        with no_sync:
            output = roi_align_pyramid(maps, rois, levels, 7, SCALES)
            torch.autograd.grad(output, maps, cotangent)


def test_unusable_boxes_are_nan_and_have_no_gradient():
    maps, rois, levels = to_gpu(*scene(boxes=6))
    rois[0, 0], rois[1, 0], rois[2, 1], rois[3, 4], levels[4] = 2, -1, torch.nan, torch.inf, 9
    output = roi_align_pyramid(maps, rois, levels, 3, SCALES)
    assert output[:5].isnan().all()
    assert output[5].isfinite().all()
    for gradient in torch.autograd.grad(output, maps, torch.ones_like(output)):
        assert gradient.isfinite().all()
    with pytest.raises(ValueError, match="feature map 1 differs"):
        roi_align_pyramid([maps[0], maps[1][:, :3]], rois, levels, 3, SCALES[:2])
    with pytest.raises(ValueError, match="levels on cpu"):
        roi_align_pyramid(maps, rois, levels.cpu(), 3, SCALES)


def test_empty_boxes_and_maps():
    for shape in ((2, 3, 5, 6), (0, 3, 5, 6), (2, 0, 5, 6)):
        input = torch.randn(shape, device="cuda", requires_grad=True)
        output = roi_align(input, torch.zeros(0, 5, device="cuda"), (4, 7))
        assert output.shape == (0, shape[1], 4, 7)
        output.sum().backward()
        assert torch.equal(input.grad, torch.zeros_like(input))


def test_gradients_to_any_order_in_float64():
    input = torch.randn(2, 3, 6, 7, dtype=torch.float64, device="cuda", requires_grad=True)
    rows = [[0, 1.0, 2, 30, 20], [1, -3, -4, 60, 10], [0, 5, 5, 5, 5]]
    rois = torch.tensor(rows, dtype=torch.float64, device="cuda")
    assert torch.autograd.gradcheck(lambda x: roi_align(x, rois, (3, 2), 0.25), input, nondet_tol=1e-9)
    assert torch.autograd.gradgradcheck(lambda x: roi_align(x, rois, (3, 2), 0.25), input, nondet_tol=1e-9)


def test_operators_pass_opcheck():
    maps, rois, levels = to_gpu(*scene(channels=3, boxes=5))
    arguments = (maps, rois, levels, SCALES, 3, 2, 0, True, True)
    assert set(torch.library.opcheck(torch.ops.maskrcnn_plus.roi_align, arguments).values()) == {"SUCCESS"}
    grad = torch.randn(5, 3, 3, 2, device="cuda", requires_grad=True)
    sizes = [size for each in maps for size in each.shape]
    arguments = (grad, rois, levels, SCALES, sizes, 0, True, True)
    assert set(torch.library.opcheck(torch.ops.maskrcnn_plus.roi_align_backward, arguments).values()) == {"SUCCESS"}
    boxes = torch.tensor([[0.0, 0, 9, 9], [1, 0, 9, 9], [20, 20, 30, 30]], device="cuda")
    arguments = (boxes, boxes[:, 0], torch.zeros(3, dtype=torch.int64, device="cuda"), 0.5)
    assert set(torch.library.opcheck(torch.ops.maskrcnn_plus.batched_nms, arguments).values()) == {"SUCCESS"}


def test_vmap_equals_the_loop():
    maps, rois, _ = to_gpu(*scene(channels=4, boxes=7))
    rois[:, 0] = 0
    samples = torch.stack([maps[0][:1], maps[0][1:]])
    found = torch.vmap(lambda x: roi_align(x, rois, 3, 0.25))(samples)
    expected = torch.stack([roi_align(sample, rois, 3, 0.25) for sample in samples])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize(("count", "groups"), [(0, 1), (1, 1), (64, 1), (900, 1), (3000, 10), (2000, 300)])
def test_suppression_equals_torchvisions_on_each_group(dtype, count, groups):
    generator = torch.Generator().manual_seed(count)
    corner = 500 * torch.rand(count, 2, generator=generator)[torch.arange(count) // 6]
    corner = corner + 13 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat([corner, corner + 40 + 13 * torch.rand(count, 2, generator=generator)], dim=1).to(dtype)
    scores = torch.randint(0, 1000, (count,), generator=generator) / 1000
    members = torch.arange(count) // 6 % groups - 3
    found = batched_nms(boxes.cuda(), scores.cuda(), members.cuda(), 0.5)
    wide = boxes.to(torch.promote_types(dtype, torch.float32))
    kept = torch.zeros(count, dtype=torch.bool)
    for group in members.unique():
        (index,) = (members == group).nonzero(as_tuple=True)
        kept[index[nms(wide[index], scores[index].to(wide), 0.5)]] = True
    order = scores.argsort(descending=True, stable=True)
    assert torch.equal(found.cpu(), order[kept[order]])


def test_masks_of_a_gpu_are_pasted_as_those_of_the_cpu():
    generator = torch.Generator().manual_seed(0)
    probs, corner = torch.rand(30, 28, 28, generator=generator), torch.rand(30, 2, generator=generator) * 90
    boxes = torch.cat([corner, corner + 40 * torch.rand(30, 2, generator=generator)], dim=1)
    assert paste_masks_rle(probs.cuda(), boxes.cuda(), 100, 120) == paste_masks_rle(probs, boxes, 100, 120)
