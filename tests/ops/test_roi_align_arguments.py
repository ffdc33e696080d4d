"""RoIAlign takes what torchvision's and Detectron2's take: other numbers, vmap, torch.fx, FLOP counts."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torchvision.ops import roi_align as torchvision_roi_align

from maskrcnn_plus.ops import extension
from maskrcnn_plus.roi import GenericRoIExtractor, PyramidROIAlign, roi_align, roi_align_pyramid

SCALES = (0.25, 0.125)


def scene(images=2):
    torch.manual_seed(0)
    maps = [torch.randn(images, 3, 16 // 2**level, 16 // 2**level) for level in range(2)]
    corner = torch.rand(6, 2) * 30
    index = torch.arange(6)[:, None] % images
    return maps, torch.cat([index, corner, corner + 4 + torch.rand(6, 2) * 30], dim=1)


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize("ratio", [0.0, -1, -1.0, np.int64(0), np.float32(0)])
def test_samples_a_bin_of_every_type_of_number(ratio):
    maps, rois = scene()
    expected = torchvision_roi_align(maps[0], rois, 3, 0.25, -1, True)
    torch.testing.assert_close(roi_align(maps[0], rois, 3, 0.25, ratio), expected, atol=1e-5, rtol=0)
    boxes = [Boxes(rois[::2, 1:]), Boxes(rois[1::2, 1:])]
    for cls, extra in ((PyramidROIAlign, {}), (GenericRoIExtractor, dict(in_channels=3, pre_kernel=0, post="none"))):
        found, plain = (cls(3, SCALES, value, **extra)(maps, boxes) for value in (ratio, 0))
        assert torch.equal(found, plain)


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize(
    ("size", "pair"),
    [
        (np.int64(3), (3, 3)),
        (3.0, (3, 3)),
        ([3, 2], (3, 2)),
        (torch.Size([3, 2]), (3, 2)),
        (np.array([3, 2]), (3, 2)),
        ((np.int32(3), 2), (3, 2)),
    ],
    ids=str,
)
def test_bins_of_every_type_of_number(size, pair):
    maps, rois = scene()
    assert torch.equal(roi_align(maps[0], boxes=rois, output_size=size), roi_align(maps[0], rois, pair))
    assert PyramidROIAlign(size, SCALES, 0).output_size == pair
    assert GenericRoIExtractor(size, SCALES, 0, in_channels=3).output_size == pair


@pytest.mark.parametrize("options", [{"sampling_ratio": 2.5}, {"sampling_ratio": "2"}, {"sampling_ratio": torch.nan}])
def test_other_numbers_of_samples_are_refused(options):
    maps, rois = scene()
    for call in (
        lambda: roi_align(maps[0], rois, 3, **options),
        lambda: PyramidROIAlign(3, SCALES, **options),
        lambda: GenericRoIExtractor(3, SCALES, in_channels=3, **options),
    ):
        with pytest.raises(ValueError, match="sampling_ratio must be a whole number"):
            call()


@pytest.mark.parametrize("size", [0, (3, -1), [3], (1, 2, 3), 2.5, "7"], ids=str)
def test_other_bins_are_refused(size):
    maps, rois = scene()
    for call in (lambda: roi_align(maps[0], rois, size), lambda: PyramidROIAlign(size, SCALES, 0)):
        with pytest.raises(ValueError, match="output_size"):
            call()


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize("dims", [(0, 0), (0, None), (None, 0), (1, 1)], ids=str)
def test_vmap_equals_the_loop(dims):
    maps, rois = scene()
    samples = torch.stack([maps[0], maps[0].flip(2), -maps[0]]).requires_grad_()
    boxes = torch.stack([rois, rois + torch.tensor([0, 1.0, 0, 1, 0]), rois])
    inputs = [
        each.movedim(0, dim) if dim is not None else each[0] for each, dim in zip((samples, boxes), dims, strict=True)
    ]
    found = torch.vmap(lambda x, r: roi_align(x, r, (3, 2), 0.25), in_dims=dims)(*inputs)
    rows = [
        roi_align(samples[0 if dims[0] is None else k], boxes[0 if dims[1] is None else k], (3, 2), 0.25)
        for k in range(3)
    ]
    expected = torch.stack(rows)
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn_like(found)
    gradients = [torch.autograd.grad(each, samples, cotangent)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.skipif(not extension.is_available(), reason=extension.why_missing())
def test_vmap_of_a_pyramid_and_of_its_gradient():
    maps, rois = scene()
    levels = torch.arange(6) % 2
    samples = [torch.stack([each, 2 * each]) for each in maps]

    def pool(fine, coarse, levels):
        return roi_align_pyramid([fine, coarse], rois, levels, 3, SCALES)

    found = torch.vmap(pool)(*samples, torch.stack([levels, 1 - levels]))
    expected = torch.stack([pool(*maps, levels), 2 * pool(*maps, 1 - levels)])
    torch.testing.assert_close(found, expected)
    inputs = [each.requires_grad_() for each in maps]
    output = pool(*inputs, levels)
    cotangents = torch.randn(4, *output.shape)
    together = torch.vmap(lambda v: torch.autograd.grad(output, inputs, v, retain_graph=True))(cotangents)
    for k in range(4):
        alone = torch.autograd.grad(output, inputs, cotangents[k], retain_graph=True)
        torch.testing.assert_close([each[k] for each in together], list(alone))


@pytest.mark.skipif(not extension.is_available(), reason=extension.why_missing())
def test_vmap_never_reads_an_image_of_another_sample():
    maps, rois = scene()
    rois[0, 0] = 2
    with pytest.raises(ValueError, match="RoI 0 is not finite"):
        torch.vmap(lambda x: roi_align(x, rois, 3, 0.25))(torch.stack([maps[0]] * 2))


class Model(nn.Module):
    def __init__(self, pooler):
        super().__init__()
        self.pooler = pooler

    def forward(self, maps, boxes):
        return self.pooler(maps, boxes).relu()


@pytest.mark.parametrize("cls", [PyramidROIAlign, GenericRoIExtractor])
def test_poolers_pass_a_symbolic_trace(cls):
    maps, rois = scene()
    extra = {} if cls is PyramidROIAlign else dict(in_channels=3, pre_kernel=0, post="none")
    model = Model(cls(3, SCALES, 0, **extra)).eval()
    traced = torch.fx.symbolic_trace(model)
    for keep in (6, 2, 0):
        boxes = [Boxes(rois[:keep:2, 1:]), Boxes(rois[1:keep:2, 1:])]
        assert torch.equal(traced(maps, boxes), model(maps, boxes))


def test_roi_align_passes_a_symbolic_trace():
    class Align(nn.Module):
        def forward(self, x, rois):
            return roi_align(x * 2, rois, 3, 0.25) + roi_align(x, [rois[:1, 1:], rois[1:2, 1:]], 3, 0.25).sum()

    maps, rois = scene()
    assert torch.equal(torch.fx.symbolic_trace(Align())(maps[0], rois), Align()(maps[0], rois))


def test_operations_of_the_layers_around_it_are_counted():
    maps, rois = scene(images=1)

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x, rois):
            return self.conv(roi_align(x, rois, 3, 0.25))

    count = FlopCountAnalysis(Head(), (maps[0], rois)).unsupported_ops_warnings(False)
    assert count.by_operator()["conv"] == 6 * 3 * 3 * 3 * 4
