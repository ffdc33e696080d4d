"""The anchors are torchvision's, whatever the sizes of images and maps."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, build_anchor_generator
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from maskrcnn_plus.rpn import TorchvisionAnchorGenerator

SIZES = [[32], [64], [128], [256], [512]]
RATIOS = [0.5, 1.0, 2.0]
STRIDES = [4, 8, 16, 32, 64]


def pyramid(height, width):
    """Maps of an image padded to a multiple of 32, the last pooled from the one before."""
    maps = [torch.zeros(1, 1, height // stride, width // stride) for stride in STRIDES[:4]]
    return [*maps, torch.nn.functional.max_pool2d(maps[-1], kernel_size=1, stride=2)]


@pytest.mark.parametrize(
    ("sizes", "ratios"),
    [
        (SIZES, RATIOS),
        ([[33], [65.5], [100], [211], [333]], [[0.3, 1.7]] * 5),
        ([[16, 23, 31], [32, 45, 63], [64, 90, 127], [128, 181, 255], [256, 362, 511]], RATIOS),
    ],
    ids=["default", "odd", "several sizes a level"],
)
def test_anchors_equal_torchvisions(sizes, ratios):
    generator = TorchvisionAnchorGenerator(sizes=sizes, aspect_ratios=ratios, strides=STRIDES)
    theirs = AnchorGenerator(
        tuple(map(tuple, sizes)), tuple(map(tuple, ratios)) if isinstance(ratios[0], list) else (tuple(ratios),) * 5
    )
    random = torch.Generator().manual_seed(0)
    sides = [(32, 32), (32, 1344), (416, 672), (800, 1088)]
    sides += [tuple(32 * side for side in torch.randint(1, 28, (2,), generator=random).tolist()) for _ in range(6)]
    assert any(height // 32 % 2 and width // 32 % 2 for height, width in sides)  # p6 is then a rounded half of p5
    for height, width in sides:
        maps = pyramid(height, width)
        ours = torch.cat([boxes.tensor for boxes in generator(maps)])
        image = ImageList(torch.zeros(1, 1, height, width), [(height, width)])
        assert torch.equal(ours, theirs(image, maps)[0])
    assert generator.num_anchors == theirs.num_anchors_per_location()


def test_they_differ_from_detectron2s_where_torchvision_rounds():
    ours = TorchvisionAnchorGenerator(sizes=SIZES, aspect_ratios=RATIOS, strides=STRIDES)
    default = DefaultAnchorGenerator(sizes=SIZES, aspect_ratios=RATIOS, strides=STRIDES, offset=0.0)
    maps = pyramid(416, 672)
    distances = [(a.tensor - b.tensor).abs().max() for a, b in zip(ours(maps), default(maps), strict=True)]
    assert all(0 < distance <= 0.5 for distance in distances[:4])
    assert distances[4] > 20  # the strides of p6: 416 // 7 = 59 and 672 // 11 = 61, not 64


def test_of_a_yacs_config():
    cfg = get_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "TorchvisionAnchorGenerator"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = SIZES
    generator = build_anchor_generator(cfg, [ShapeSpec(channels=1, stride=stride) for stride in STRIDES])
    assert isinstance(generator, TorchvisionAnchorGenerator)
    expected = TorchvisionAnchorGenerator(sizes=SIZES, aspect_ratios=RATIOS, strides=STRIDES)
    maps = pyramid(96, 160)
    assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(generator(maps), expected(maps), strict=True))


def test_another_number_of_maps_is_refused():
    generator = TorchvisionAnchorGenerator(sizes=SIZES, aspect_ratios=RATIOS, strides=STRIDES)
    with pytest.raises(ValueError, match="zip"):
        generator(pyramid(64, 64)[:4])
