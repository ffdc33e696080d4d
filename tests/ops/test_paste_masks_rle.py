"""Pasting masks as runs: Detectron2's or torchvision's pixels, pycocotools' text, and no cost for the image."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.layers.mask_ops import _do_paste_mask, paste_masks_in_image
from torchvision.models.detection import roi_heads as torchvision_heads

from maskrcnn_plus.masks.measure import move_rles, rle_areas, rle_boxes
from maskrcnn_plus.ops import extension
from maskrcnn_plus.ops.paste_masks_rle import paste_masks_rle
from maskrcnn_plus.ops.paste_masks_rle_reference import paste_masks_rle_reference

needs_extension = pytest.mark.skipif(not extension.is_available(), reason=extension.why_missing())
CASES = 270  # images, of 8 objects each
RULES = ("detectron2", "torchvision")
KINDS = ("sub-pixel", "pixel", "half a pixel", "partly outside", "wholly outside", "one pixel", "image", "degenerate")


def random_boxes(kind, count, height, width, generator):
    """Boxes [count, 4]."""
    size = torch.tensor([width, height])
    centre = torch.rand(count, 2, generator=generator) * size
    side = (torch.rand(count, 2, generator=generator) ** 2 * 0.7) * size + 0.3
    if kind == "partly outside":
        centre = (centre / size).round() * size
    if kind == "wholly outside":
        centre += size * torch.tensor([1.8, -1.8])[torch.randint(0, 2, (count, 1), generator=generator)]
    if kind == "one pixel":
        side = torch.ones(count, 2)
    boxes = torch.cat([centre - side / 2, centre + side / 2], dim=1)
    if kind == "pixel":
        return boxes.round()
    if kind == "half a pixel":
        return (boxes * 2).round() / 2
    if kind == "image":
        return torch.cat([torch.zeros(2), size]).repeat(count, 1)
    if kind == "degenerate":  # no width, no height, neither, or so little that a float32 barely tells
        boxes[0::4, 2] = boxes[0::4, 0]
        boxes[1::4, 3] = boxes[1::4, 1] = boxes[1::4, 1].floor() + 0.5
        boxes[2::4, 2:] = boxes[2::4, :2]
        boxes[3::4, 2:] = boxes[3::4, :2] + 1e-6
    return boxes


def random_case(seed):
    """Probabilities [8, m, m] of blobs, noise, two values or few values, boxes [8, 4] and an image size."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (torch.rand(2, generator=generator) ** 2 * 150 + 1).int().tolist()
    side = (28, 28, 14, 56, 7, 1)[seed % 6]
    probs = torch.rand(8, side, side, generator=generator)
    style = seed // len(KINDS) % 4
    if style == 0:
        axis = torch.linspace(-1, 1, side) if side > 1 else torch.zeros(1)
        probs = torch.sigmoid(8 * (0.7 - axis[:, None] ** 2 - axis**2) + probs)
    elif style == 1:
        probs = (probs > 0.4).float()
    elif style == 2:
        probs = (probs * 4).round() / 4
    return probs, random_boxes(KINDS[seed % len(KINDS)], 8, height, width, generator), height, width


def detectron2_masks(probs, boxes, height, width, threshold=0.5):
    """Dense masks, bool [N, H, W]. Detectron2 fails on a box outside the image unless it samples the whole image."""
    masks = np.zeros((len(boxes), height, width), dtype=bool)
    for mask, prob, box in zip(masks, probs[:, None], boxes[:, None], strict=True):
        try:
            mask[:] = paste_masks_in_image(prob, box, (height, width), threshold)[0].numpy()
        except RuntimeError:
            values = _do_paste_mask(prob[None], box, height, width, skip_empty=False)[0][0]
            mask[:] = (values >= threshold).numpy()
    return masks


def encode(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def test_pixels_of_detectron2_and_text_of_pycocotools():
    """2,160 masks. Values are computed in the order of ATen's `grid_sample`, whose products are fused with sums where
    the processor can do that; built by another compiler it may round otherwise, which shows where a value equals the
    threshold up to the last digit."""
    equal, found = 0, 0
    for seed in range(CASES):
        probs, boxes, height, width = random_case(seed)
        rles = paste_masks_rle(probs, boxes, height, width)
        for mask, rle in zip(detectron2_masks(probs, boxes, height, width), rles, strict=True):
            expected = encode(mask)
            equal += rle == expected
            found += bool(mask.any())
            if rle != expected:
                different = (coco_mask.decode(rle) != mask).sum()
                assert different <= max(mask.sum() / 1000, 1), f"case {seed}: {different} pixels of {mask.sum()}"
    assert found > CASES * 8 / 3  # many lie outside or are smaller than a pixel
    assert equal >= 0.999 * CASES * 8, f"{equal} of {CASES * 8} are equal"


@needs_extension
def test_equal_pixels_without_fused_operations():
    """The same in a process in which PyTorch takes its kernels for processors without AVX2."""
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('rle_tests', sys.argv[1])\n"
        "tests = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(tests)\n"
        "tests.test_pixels_of_detectron2_and_text_of_pycocotools()\n"
        "tests.test_pixels_of_torchvision()\n"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_pycocotools_reads_every_rle():
    for seed in range(0, CASES, 2):
        probs, boxes, height, width = random_case(seed)
        rles = paste_masks_rle(probs, boxes, height, width)
        assert rle_areas(rles).tolist() == [int(coco_mask.area(rle)) for rle in rles]
        x, y, w, h = np.array([coco_mask.toBbox(rle) for rle in rles]).T
        assert np.array_equal(rle_boxes(rles), np.stack([x, y, x + w, y + h], axis=1))
        for rle in rles:
            assert encode(coco_mask.decode(rle)) == rle


@needs_extension
def test_operator_equals_reference_on_masks_of_any_shape_and_value():
    generator = torch.Generator().manual_seed(0)
    for seed in range(60):
        _, boxes, height, width = random_case(seed)
        probs = torch.randn(8, *((28, 14), (3, 50), (1, 5))[seed % 3], generator=generator)
        size = torch.tensor([width, height, width, height])
        near = boxes.clamp(-size, 2 * size)  # as far as torchvision's rule goes
        infinite = probs.clone()  # where a neighbour has no weight, `interpolate` sometimes leaves it out
        infinite[:3, 0, 0] = torch.tensor([float("nan"), float("inf"), -float("inf")])
        for threshold in (0.0, 0.5, 1.0):
            for masks, where, *rule in ((infinite, boxes), (probs, near, "torchvision")):
                expected = paste_masks_rle_reference(masks, where, height, width, threshold, *rule)
                assert paste_masks_rle(masks, where, height, width, threshold, *rule) == expected


def test_inverted_boxes():
    """Detectron2 mirrors the mask where its window has pixels, and fails where it has none: there the mask is empty."""
    probs = torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[5.9, 3.0, 5.2, 9.0], [7.4, 8.6, 6.6, 7.8], [12.0, 3.0, 4.0, 9.0]])
    rles = paste_masks_rle(probs, boxes, 12, 16, 0.2)
    assert rles[:2] == [encode(mask) for mask in paste_masks_in_image(probs[:2], boxes[:2], (12, 16), 0.2).numpy()]
    assert rle_areas(rles)[0] > 0
    assert rle_areas(rles)[2] == 0
    with pytest.raises(RuntimeError):
        paste_masks_in_image(probs[2:], boxes[2:], (12, 16))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_are_pasted_in_float32(dtype):
    probs, boxes, height, width = random_case(8)
    probs, boxes = probs.to(dtype), boxes.to(dtype)
    expected = paste_masks_rle(probs.float(), boxes.float(), height, width)
    assert rle_areas(expected).any()
    assert paste_masks_rle(probs, boxes, height, width) == expected


def test_views_gradients_and_inference_mode():
    probs, boxes, height, width = random_case(16)
    expected = paste_masks_rle(probs, boxes, height, width)
    views = probs.permute(2, 0, 1).contiguous().permute(1, 2, 0), boxes.T.contiguous().T
    assert not any(view.is_contiguous() for view in views)
    assert paste_masks_rle(*views, height, width) == expected
    assert paste_masks_rle(probs.requires_grad_(), boxes.requires_grad_(), height, width) == expected
    with torch.inference_mode():
        assert paste_masks_rle(probs * 1, boxes * 1, height, width) == expected


def test_results_do_not_depend_on_threads():
    generator = torch.Generator().manual_seed(1)
    boxes = random_boxes("sub-pixel", 300, 200, 300, generator)
    probs = torch.rand(300, 28, 28, generator=generator)
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2):
            torch.set_num_threads(number)
            results.append(paste_masks_rle(probs, boxes, 200, 300))
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1]
    assert len(set(map(str, results[0]))) > 250


def test_the_image_costs_nothing():
    """The same objects in 400 x 400 and, moved, in 3.6 billion pixels, of which one byte each would not fit."""
    generator = torch.Generator().manual_seed(2)
    boxes = (random_boxes("sub-pixel", 50, 400, 400, generator) * 64).round() / 64  # exact where they are moved to
    probs = torch.rand(50, 28, 28, generator=generator)
    rles = paste_masks_rle(probs, boxes.clamp(1, 399), 400, 400)
    offset = torch.tensor([50000, 40000] * 2)
    far = paste_masks_rle(probs, boxes.clamp(1, 399) + offset, 60000, 60000)
    assert far[0]["size"] == [60000, 60000]
    assert move_rles(far, -50000, -40000, 400, 400) == rles
    assert move_rles(rles, 50000, 40000, 60000, 60000) == far


def test_no_objects_and_an_image_of_one_pixel():
    assert paste_masks_rle(torch.zeros(0, 28, 28), torch.zeros(0, 4), 5, 7) == []
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    full, empty = (paste_masks_rle(torch.full((1, 28, 28), value), box, 1, 1)[0] for value in (1.0, 0.0))
    assert full == encode(np.ones((1, 1)))
    assert empty == encode(np.zeros((1, 1)))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"mask_probs": torch.rand(2, 1, 28, 28)}, ValueError, r"\[N, Hm, Wm\]"),
        ({"mask_probs": torch.rand(3, 28, 28)}, ValueError, r"\[N, 4\]"),
        ({"mask_probs": torch.rand(2, 0, 28)}, ValueError, "hold nothing"),
        ({"mask_probs": torch.ones(2, 28, 28, dtype=torch.bool)}, TypeError, "floating point"),
        ({"boxes": torch.tensor([[0.0, 0, 1, 1], [0, float("nan"), 1, 1]])}, ValueError, "box 1 is not finite"),
        ({"boxes": torch.tensor([[0.0, 0, 1e300, 1]] * 2, dtype=torch.float64)}, ValueError, "box 0 is not finite"),
        ({"boxes": torch.tensor([[0.0, 0, 1e9, 1e9]] * 2), "rule": "torchvision"}, ValueError, "clip it"),
        ({"height": 0}, ValueError, "0 x 20 pixels"),
        ({"width": -3}, ValueError, "10 x -3 pixels"),
        ({"height": 2**20, "width": 2**12}, ValueError, "4294967295"),
        ({"threshold": -0.5}, ValueError, "threshold"),
        ({"rule": "nearest"}, ValueError, "nearest"),
    ],
)
def test_refuses(change, error, text):
    arguments = {"mask_probs": torch.rand(2, 28, 28), "boxes": torch.zeros(2, 4), "height": 10, "width": 20, **change}
    with pytest.raises(error, match=text):
        paste_masks_rle(**arguments)


@needs_extension
def test_operator_refuses_what_would_crash_it():
    operator = torch.ops.maskrcnn_plus.paste_masks_rle
    good = torch.rand(2, 28, 28), torch.zeros(2, 4), 10, 20, 0.5, "torchvision"
    operator(*good)
    operator(good[0], torch.tensor([[-3e38, -3e38, 3e38, 3e38], [3e38, 0, -3e38, 9]]), *good[2:])
    refused = (torch.rand(3, 28, 28), torch.full((2, 4), float("inf")), 0, 2**62)
    for index, bad in (*enumerate(refused), (5, "nearest")):
        with pytest.raises(ValueError, match="paste_masks_rle"):
            operator(*(bad if i == index else value for i, value in enumerate(good)))


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize("rule", RULES)
def test_operator_passes_opcheck(rule):
    probs, boxes, height, width = random_case(24)
    for count in (8, 0):
        arguments = (probs[:count], boxes[:count], height, width, 0.5, rule)
        results = torch.library.opcheck(torch.ops.maskrcnn_plus.paste_masks_rle.default, arguments)
        assert set(results.values()) == {"SUCCESS"}


def test_without_the_operator_the_reference_runs_and_says_so_once(monkeypatch, request):
    probs, boxes, height, width = random_case(32)
    expected, by_torchvision = (paste_masks_rle(probs, boxes, height, width, rule=rule) for rule in RULES)
    request.getfixturevalue("without_kernels")
    monkeypatch.setattr(extension, "_why_missing", "left out")
    monkeypatch.setattr(extension, "_warned", False)
    with pytest.warns(UserWarning, match="paste_masks_rle.*left out"):
        results = paste_masks_rle(probs, boxes, height, width)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert paste_masks_rle(probs, boxes, height, width) == results == expected
        assert paste_masks_rle(probs, boxes, height, width, rule="torchvision") == by_torchvision


def test_pixels_of_torchvision():
    """1,080 masks, of boxes whose sides are less and more than 128 pixels together: ATen's order differs."""
    for seed in range(0, CASES, 2):
        probs, boxes, height, width = random_case(seed)
        larger = 1 + seed % 3
        boxes, height, width = boxes * larger, height * larger, width * larger
        boxes[:, 0::2].clamp_(0, width)
        boxes[:, 1::2].clamp_(0, height)
        rles = paste_masks_rle(probs, boxes, height, width, rule="torchvision")
        pasted = torchvision_heads.paste_masks_in_image(probs[:, None], boxes, (height, width))  # [N, 1, H, W]
        assert rles == [encode(mask) for mask in (pasted[:, 0] >= 0.5).numpy()]
