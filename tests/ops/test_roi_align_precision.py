"""Boxes keep their pixels whatever the type of the maps, with the compiled operators and without."""

import pytest
import torch
from detectron2.structures import Boxes
from torch.nn import functional as F

from maskrcnn_plus.ops import roi_align_fallback
from maskrcnn_plus.ops.roi_align_reference import roi_align_reference
from maskrcnn_plus.roi import GenericRoIExtractor, PyramidROIAlign, roi_align, roi_align_pyramid
from maskrcnn_plus.rpn import batched_nms
from maskrcnn_plus.rpn.adaptive_conv import AdaptiveConv2d, sampling_grid
from maskrcnn_plus.rpn.anchors import TorchvisionAnchorGenerator

HALVES = [torch.bfloat16, torch.float16]
SCALES = (1 / 4, 1 / 8)


def scene(dtype):
    """Rough maps of an image of 1200 px, and small boxes near its far corner."""
    torch.manual_seed(0)
    maps = [torch.randn(1, 3, 300 // 2**level, 300 // 2**level).to(dtype) for level in range(2)]
    corner = 900 + torch.rand(20, 2) * 200
    boxes = torch.cat([corner, corner + 12 + torch.rand(20, 2) * 60], dim=1)
    return maps, torch.cat([torch.zeros(20, 1), boxes], dim=1)


def truth(maps, rois, levels, size=5):
    rows = [
        roi_align_reference(maps[level].double(), roi[None].double(), (size, size), SCALES[level], 0)
        for roi, level in zip(rois, levels.tolist(), strict=True)
    ]
    return torch.cat(rows)


def relative_error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_roi_align_rounds_its_result_once(dtype, autocast):
    maps, rois = scene(dtype)
    rois = rois.to(torch.promote_types(dtype, torch.float32))
    levels = torch.arange(20) % 2
    bound = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        one = roi_align(maps[0], rois, 5, SCALES[0])
        listed = roi_align(maps[0], [rois[:, 1:]], 5, SCALES[0])
        pyramid = roi_align_pyramid(maps, rois, levels, 5, SCALES)
    assert {one.dtype, listed.dtype, pyramid.dtype} == {dtype}
    assert relative_error(one, truth(maps, rois, levels * 0)) < bound
    assert torch.equal(one, listed)
    assert relative_error(pyramid, truth(maps, rois, levels)) < bound


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize("dtype", HALVES)
def test_poolers_keep_the_boxes_of_half_precision_maps(dtype):
    maps, rois = scene(dtype)
    boxes = [Boxes(rois[:, 1:])]
    pooled = PyramidROIAlign(5, SCALES, 0, canonical_box_size=60, canonical_level=3)(maps, boxes)
    exact = PyramidROIAlign(5, SCALES, 0, canonical_box_size=60, canonical_level=3)([m.double() for m in maps], boxes)
    assert relative_error(pooled, exact) < 2**-8
    options = dict(in_channels=3, pre_kernel=0, post="none")
    pooled = GenericRoIExtractor(5, SCALES, 0, **options)(maps, boxes)
    exact = sum(truth(maps, rois, torch.full((20,), level)) for level in range(2))
    assert relative_error(pooled, exact) < 2**-7


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.usefixtures("without_kernels")
def test_the_reference_in_place_of_a_kernel_keeps_them_too(dtype, monkeypatch):
    """As on a GPU without Triton where deterministic algorithms are asked for."""
    monkeypatch.setattr(roi_align_fallback, "_MOST_MAPS", 0)
    monkeypatch.setattr(roi_align_fallback, "_MOST_SAMPLES", 0)
    maps, rois = scene(dtype)
    levels = torch.arange(20) % 2
    with torch.autocast("cpu", torch.bfloat16):
        found = roi_align_pyramid(maps, rois, levels, 5, SCALES)
    assert found.dtype == dtype
    assert relative_error(found, truth(maps, rois, levels)) < 2**-8


@pytest.mark.usefixtures("_operators")
def test_half_precision_counts_more_images_than_it_holds():
    images = 300  # bfloat16 knows 256 and 258, but not 257
    maps = torch.arange(images).bfloat16()[:, None, None, None].expand(-1, 1, 2, 2)
    boxes = [torch.tensor([[0.0, 0.0, 2.0, 2.0]], dtype=torch.bfloat16)] * images
    assert torch.equal(roi_align(maps, boxes, 1)[:, 0, 0, 0], torch.arange(images).bfloat16())


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize("dtype", HALVES)
def test_suppression_of_half_precision_boxes_is_that_of_the_same_in_float32(dtype):
    torch.manual_seed(0)
    corner = 1000 + torch.rand(200, 2) * 100
    boxes = torch.cat([corner, corner + 20 + torch.rand(200, 2) * 60], dim=1).to(dtype)
    scores, groups = torch.rand(200), torch.randint(0, 40, (200,))
    keep = batched_nms(boxes, scores, groups, 0.5)
    assert torch.equal(keep, batched_nms(boxes.double(), scores.double(), groups, 0.5))


@pytest.mark.parametrize("dtype", HALVES)
def test_anchors_of_a_half_precision_model_stand_at_their_pixels(dtype):
    generator = TorchvisionAnchorGenerator(sizes=[[32], [64]], aspect_ratios=[1.0], strides=[4, 8])
    maps = [torch.zeros(1, 1, 300, 300), torch.zeros(1, 1, 150, 150)]
    expected = [anchors.tensor for anchors in generator(maps)]
    found = [anchors.tensor for anchors in generator.to(dtype)([each.to(dtype) for each in maps])]
    assert all(torch.equal(*each) for each in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", HALVES)
def test_adaptive_convolution_samples_at_the_anchors(dtype):
    torch.manual_seed(0)
    conv = AdaptiveConv2d(2, 3).double()
    nn_input = torch.randn(1, 2, 1, 250, dtype=torch.float64)
    places = torch.arange(250.0)
    anchors = torch.stack([places - 2.3, places * 0 - 1, places + 2.3, places * 0 + 1], dim=1)[None]
    conv.to(dtype)
    features = nn_input.to(dtype)
    sampled = F.grid_sample(features.double(), sampling_grid(anchors.double(), 1, 250), align_corners=False)
    expected = F.conv2d(sampled, conv.weight.double(), stride=3)
    assert relative_error(conv(features, anchors), expected) < 2**-6
