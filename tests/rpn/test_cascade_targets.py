"""The objects of the places against a loop over places and objects, and the box losses against their formulas."""

import math

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss

from maskrcnn_plus.rpn.cascade import square_anchors
from maskrcnn_plus.rpn.cascade_targets import BACKGROUND, IGNORED, box_iou_loss, paint_regions

STRIDES = [4, 8, 16]


def maps_and_anchors(side=64, scale=4.0, offset=0.0):
    sizes = [(side // stride, side // stride + index) for index, stride in enumerate(STRIDES)]
    generator = square_anchors(STRIDES, scale, offset)
    return sizes, [boxes.tensor for boxes in generator([torch.zeros(1, 1, *size) for size in sizes])]


def targets_of(boxes, offset=0.0, side=64, center=0.2, ignore=0.5):
    sizes, anchors = maps_and_anchors(side, offset=offset)
    first = torch.stack([each[0] for each in anchors]).numpy()
    return torch.from_numpy(paint_regions(boxes.numpy(), first, sizes, STRIDES, center, ignore))


def random_boxes(count, side=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(count, 2, generator=generator) * side
    sides = 2 ** (torch.rand(count, 2, generator=generator) * 5)  # 1 to 32 pixels
    return torch.cat([centers - sides / 2, centers + sides / 2], dim=1).clamp(0, side)


def loop(boxes, offset, scale=4.0, center=0.2, ignore=0.5, side=64):
    """The reference's rules for one place after the other, where the smallest object that claims it counts."""
    objects = []
    for index, (x1, y1, x2, y2) in enumerate(boxes.double().tolist()):
        size = math.sqrt(max((x2 - x1) * (y2 - y1), 1e-6))
        level = math.floor(math.log2(size) - math.log2(scale * STRIDES[0]) + 0.5)
        objects.append((size, index, min(max(level, 0), len(STRIDES) - 1), (x1, y1, x2, y2)))
    objects.sort(key=lambda each: each[0])

    def inside(box, ratio, place, level):
        rest, (columns, rows) = (1 - ratio) / 2, (side // STRIDES[level] + level, side // STRIDES[level])
        for low, high, at, count in ((box[0], box[2], place[1], columns), (box[1], box[3], place[0], rows)):
            low, high = low / STRIDES[level] - offset, high / STRIDES[level] - offset
            first, last = round((1 - rest) * low + rest * high), round(rest * low + (1 - rest) * high)
            if not min(max(first, 0), count - 1) <= at <= min(max(last, 0), count - 1):
                return False
        return True

    result = []
    for level, stride in enumerate(STRIDES):
        for row in range(side // stride):
            for column in range(side // stride + level):
                value, place = BACKGROUND, (row, column)
                for _, index, own, box in objects:
                    if own == level and inside(box, ignore, place, level):
                        value = index if inside(box, center, place, level) else IGNORED
                        break
                if any(abs(own - level) == 1 and inside(box, ignore, place, level) for _, _, own, box in objects):
                    value = IGNORED
                result.append(value)
    return torch.tensor(result)


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("count", [0, 1, 2, 12, 40])
def test_equals_the_loop(count, offset):
    boxes = random_boxes(count, seed=count)
    result = targets_of(boxes, offset)
    assert result.dtype == torch.int64
    assert torch.equal(result, loop(boxes, offset))


@pytest.mark.parametrize(("center", "ignore"), [(0.2, 0.2), (0.5, 1.0), (1.0, 1.0)])
def test_ratios(center, ignore):
    boxes = random_boxes(10, seed=3)
    expected = loop(boxes, 0.0, center=center, ignore=ignore)
    assert torch.equal(targets_of(boxes, center=center, ignore=ignore), expected)


def test_an_image_without_objects_is_background():
    result = targets_of(torch.zeros(0, 4))
    assert result.shape == (16 * 16 + 8 * 9 + 4 * 6,)
    assert (result == BACKGROUND).all()


@pytest.mark.parametrize("corner", [(0, 0), (63, 63), (0, 63), (31.4, 17.9)])
@pytest.mark.parametrize("size", [0.0, 1.0, 12.0, 40.0])
def test_every_object_has_a_place(corner, size):
    box = torch.tensor([[corner[0], corner[1], corner[0] + size, corner[1] + size]]).clamp(max=64)
    result = targets_of(box)
    assert (result == 0).any()


def test_levels_follow_the_size():
    sizes, _ = maps_and_anchors()
    splits = [height * width for height, width in sizes]
    for size, level in ((1, 0), (22.6, 0), (22.7, 1), (45.2, 1), (45.3, 2), (64, 2)):
        box = torch.tensor([[32 - size / 2, 32 - size / 2, 32 + size / 2, 32 + size / 2]])
        learning = [bool((each == 0).any()) for each in targets_of(box).split(splits)]
        assert learning == [index == level for index in range(3)], size


def test_the_order_of_the_objects_does_not_count():
    boxes = random_boxes(30, seed=5)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    first, second = targets_of(boxes), targets_of(boxes[order])
    assert (first >= 0).sum() > 20
    expected = torch.where(second >= 0, order[second.clamp(min=0)], second)
    assert torch.equal(first, expected)


def test_five_hundred_objects_in_rows_all_have_places():
    x, y = torch.meshgrid(torch.arange(25.0), torch.arange(20.0), indexing="xy")
    corners = torch.stack([x.flatten(), y.flatten()], dim=1) * 12
    boxes = torch.cat([corners, corners + 12], dim=1)  # each touches its neighbours
    result = targets_of(boxes, side=320)
    assert result[result >= 0].unique().numel() == 500


def formula(first, second, kind):
    """IoU and generalised IoU of two boxes, from numbers."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    overlap = width * height if width > 0 and height > 0 else 0.0
    union = sum((each[2] - each[0]) * (each[3] - each[1]) for each in (first, second)) - overlap
    loss = 1 - overlap / union
    if kind == "iou":
        return loss
    hull = (max(first[2], second[2]) - min(first[0], second[0])) * (max(first[3], second[3]) - min(first[1], second[1]))
    return loss + (hull - union) / hull


def pairs(count=60):
    boxes, targets = (random_boxes(count, seed=seed).double() for seed in (1, 2))
    targets[::2] = boxes[::2] + torch.randn(len(boxes[::2]), 4, generator=torch.Generator().manual_seed(0)) * 0.2
    return boxes, targets


@pytest.mark.parametrize("kind", ["iou", "giou"])
def test_box_losses_equal_their_formulas(kind):
    boxes, targets = pairs()
    result = box_iou_loss(boxes, targets, kind)
    assert 10 < (result < 1).sum() < 50 or kind == "giou"
    expected = [formula(*each, kind) for each in zip(boxes.tolist(), targets.tolist(), strict=True)]
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)
    if kind == "giou":
        torch.testing.assert_close(result, generalized_box_iou_loss(boxes, targets), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["iou", "giou"])
def test_gradients_of_box_losses(kind):
    boxes, targets = pairs(8)
    assert torch.autograd.gradcheck(lambda each: box_iou_loss(each, targets, kind), boxes.requires_grad_())


@pytest.mark.parametrize("kind", ["iou", "giou"])
def test_box_losses_of_degenerate_boxes_are_finite(kind):
    boxes = torch.tensor([[1.0, 1, 2, 2], [3, 3, 3, 3], [0, 0, 0, 4], [5, 5, 6, 6]], requires_grad=True)
    targets = torch.tensor([[1.0, 1, 2, 2], [3, 3, 3, 3], [0, 0, 4, 4], [9, 9, 9, 9]])
    loss = box_iou_loss(boxes, targets, kind)
    loss.sum().backward()
    assert loss[0] == 0
    assert loss[1] >= 1
    assert torch.isfinite(loss).all()
    assert torch.isfinite(boxes.grad).all()
    assert box_iou_loss(boxes[:0], targets[:0], kind).shape == (0,)
