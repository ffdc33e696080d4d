"""PyramidROIAlign is Detectron2's ROIPooler: same arguments, same levels, same order, same values."""

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes

from maskrcnn_plus.config import get_config
from maskrcnn_plus.roi import PyramidROIAlign

SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)


def _features(images, channels=5, size=256):
    torch.manual_seed(0)
    return [torch.randn(images, channels, int(size * s), int(size * s), requires_grad=True) for s in SCALES]


def _boxes(count, seed, size=256):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size
    side = 2 ** (torch.rand(count, 2, generator=generator) * 7 + 2)
    return Boxes(torch.cat([corner, corner + side], dim=1))


@pytest.mark.parametrize("pooler_type", ["ROIAlign", "ROIAlignV2"])
@pytest.mark.parametrize("counts", [(30, 20), (0, 7), (7, 0), (0, 0), (1,)])
@pytest.mark.parametrize("canonical", [(224, 4), (64, 3)])
def test_equals_detectron2s_pooler(pooler_type, counts, canonical):
    features = _features(len(counts))
    boxes = [_boxes(count, seed) for seed, count in enumerate(counts)]
    poolers = [
        cls(7, SCALES, 0, pooler_type, canonical_box_size=canonical[0], canonical_level=canonical[1])
        for cls in (PyramidROIAlign, ROIPooler)
    ]
    outputs = [pooler(features, boxes) for pooler in poolers]
    assert outputs[0].shape == (sum(counts), 5, 7, 7)
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)
    if sum(counts):
        cotangent = torch.randn_like(outputs[0])
        gradients = [torch.autograd.grad(output, features, cotangent, allow_unused=True) for output in outputs]
        for ours, theirs in zip(*gradients, strict=True):
            theirs = torch.zeros_like(ours) if theirs is None else theirs
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_one_map_alone():
    feature = _features(1)[2:3]
    boxes = [_boxes(9, 3)]
    outputs = [
        cls((3, 5), SCALES[2:3], 2)(feature, boxes) for cls in (PyramidROIAlign, lambda *a: ROIPooler(*a, "ROIAlignV2"))
    ]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooler_type": "ROIAlignRotated"}, "ROIPooler"),
        ({"scales": (0.3, 0.15)}, "powers of 1/2"),
        ({"scales": (1 / 4, 1 / 16)}, "fall by halves"),
        ({"scales": ()}, "powers of 1/2"),
        ({"output_size": 0}, "output_size"),
        ({"canonical_box_size": 0}, "canonical_box_size"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PyramidROIAlign(**{"output_size": 7, "scales": SCALES, "sampling_ratio": 0, **changes})


def test_inputs_that_do_not_fit_are_refused():
    pooler = PyramidROIAlign(7, SCALES, 0)
    features = _features(2)
    with pytest.raises(ValueError, match="3 maps for 4 scales"):
        pooler(features[:3], [_boxes(1, 0)] * 2)
    with pytest.raises(ValueError, match="boxes of 1 images, maps of 2"):
        pooler(features, [_boxes(1, 0)])


@pytest.mark.parametrize("name", ["demo/mask_rcnn_lite0_fpn", "nuclei/mask_rcnn_lite0_fpn"])
def test_configs_for_dense_scenes_use_it(name):
    heads = get_config(name).model.roi_heads
    for pooler in (heads.box_pooler, heads.mask_pooler):
        assert pooler._target_ is PyramidROIAlign
