"""Mask targets are the crops of the masks, of whatever type, and soft ones the parts of pixels that masks cover.
Boundary targets are those of a loop over the neighbours."""

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch.nn import functional as F

from maskrcnn_plus.mask_heads import boundary_targets, mask_targets
from maskrcnn_plus.masks.label_masks import LabelMapMasks

SIZE = (40, 50)


def image(count, seed=0):
    """Discs and boxes about them, with parts outside of the image."""
    random = torch.Generator().manual_seed(seed)
    ys, xs = torch.arange(SIZE[0])[:, None], torch.arange(SIZE[1])[None]
    label_map = torch.zeros(SIZE, dtype=torch.int32)
    boxes = torch.zeros(count, 4)
    for index in range(count):
        x, y, radius = (torch.rand(3, generator=random) * torch.tensor([45.0, 35.0, 6.0]) + 3).tolist()
        label_map[(ys - y) ** 2 + (xs - x) ** 2 < radius**2] = index + 1
        boxes[index] = torch.tensor([x - radius, y - radius, x + radius, y + radius])
    boxes += torch.randn(count, 4, generator=random)
    masks = LabelMapMasks(label_map, torch.arange(count) + 1)
    return Instances(SIZE, proposal_boxes=Boxes(boxes), gt_masks=masks)


@pytest.mark.parametrize("size", [1, 14, 28, 56])
def test_hard_targets_are_detectron2s_crops_image_after_image(size):
    images = [image(3, 0), Instances(SIZE, proposal_boxes=Boxes(torch.zeros(0, 4))), image(5, 1)]
    targets = mask_targets(images, size)
    expected = [each.gt_masks.to_bitmasks().crop_and_resize(each.proposal_boxes.tensor, size) for each in images[::2]]
    assert targets.dtype == torch.float32
    assert torch.equal(targets, torch.cat(expected).float())


@pytest.mark.parametrize("kind", ["label map", "bitmap"])
def test_soft_targets_are_means_of_a_finer_crop(kind):
    each = image(6)
    if kind == "bitmap":
        each.gt_masks = each.gt_masks.to_bitmasks()
    soft = mask_targets([each], 14, soft=True)
    fine = each.gt_masks.crop_and_resize(each.proposal_boxes.tensor, 56).numpy()
    expected = np.zeros((6, 14, 14))
    for row in range(14):
        for column in range(14):
            expected[:, row, column] = fine[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].mean((1, 2))
    np.testing.assert_allclose(soft.numpy(), expected, atol=1e-6)
    assert ((soft > 0) & (soft < 1)).any()
    # They are the hard ones but for pixels on the boundary.
    assert ((soft - mask_targets([each], 14)).abs() <= 0.75).all()


def test_soft_target_of_a_rectangle_is_its_part_of_each_pixel():
    square = np.array([10.0, 10, 20, 10, 20, 20, 10, 20])  # reaches half of the box's last columns
    each = Instances(SIZE, proposal_boxes=Boxes(torch.tensor([[10.0, 10, 30, 20]])), gt_masks=PolygonMasks([[square]]))
    soft = mask_targets([each], 5, soft=True)
    expected = torch.tensor([1, 1, 0.5, 0, 0]).expand(5, 5)
    assert (soft[0] - expected).abs().max() <= 0.25  # rasterised polygons may be a subsample wider
    assert mask_targets([each], 2).tolist() == [[[1, 0], [1, 0]]]


def test_polygons_and_bitmaps_agree():
    polygon = np.array([12.0, 8, 30, 8, 30, 25, 12, 25])
    bitmap = torch.zeros(1, *SIZE, dtype=torch.bool)
    bitmap[0, 8:25, 12:30] = True
    boxes = Boxes(torch.tensor([[8.0, 4, 34, 30]]))
    targets = [
        mask_targets([Instances(SIZE, proposal_boxes=boxes, gt_masks=masks)], 26)
        for masks in (PolygonMasks([[polygon]]), BitMasks(bitmap))
    ]
    assert (targets[0] != targets[1]).float().mean() < 0.1
    assert targets[1].sum() == 17 * 18  # a bin is a pixel


class FloatMasks:
    """Stands for masks whose crops are soft already."""

    def __init__(self, crop):
        self.crop = crop

    def __len__(self):
        return len(self.crop)

    def crop_and_resize(self, boxes, size):
        return self.crop[:, :1, :1].expand(-1, size, size)


def test_crops_that_are_soft_stay_so():
    crop = torch.tensor([0.3, 0.9], dtype=torch.float64)[:, None, None]
    each = Instances(SIZE, proposal_boxes=Boxes(torch.ones(2, 4)), gt_masks=FloatMasks(crop))
    for soft in (False, True):
        assert torch.allclose(mask_targets([each], 3, soft), crop.float().expand(2, 3, 3))


@pytest.mark.parametrize("soft", [False, True])
def test_nothing_to_cut(soft):
    empty = Instances(SIZE, proposal_boxes=Boxes(torch.zeros(0, 4)))
    for images in ([], [empty], [Instances(SIZE, gt_classes=torch.zeros(0)), empty]):
        assert mask_targets(images, 28, soft).shape == (0, 28, 28)
    objects = image(2)
    assert torch.equal(mask_targets([empty, objects, empty], 7, soft), mask_targets([objects], 7, soft))


def test_one_pixel_fills_its_box():
    label_map = torch.zeros(SIZE, dtype=torch.int32)
    label_map[5, 7] = 1
    each = Instances(
        SIZE,
        proposal_boxes=Boxes(torch.tensor([[7.0, 5, 8, 6], [0, 0, 50, 40]])),
        gt_masks=LabelMapMasks(label_map, torch.tensor([1, 1])),
    )
    targets = mask_targets([each], 14)
    assert targets[0, 6, 6] == 1
    assert targets[1].sum() == 0  # far less than half of a bin
    assert 0 < mask_targets([each], 14, soft=True)[1].sum() < 1


def test_no_gradient_flows_into_the_boxes():
    each = image(2)
    boxes = each.proposal_boxes.tensor.requires_grad_()
    each.proposal_boxes = Boxes(boxes)
    assert not mask_targets([each], 7).requires_grad


def test_missing_fields_and_bad_sizes_are_refused():
    each = image(2)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        mask_targets([each], 0)
    each.remove("gt_masks")
    with pytest.raises(ValueError, match=r"image 1 of the batch has \['proposal_boxes'\]"):
        mask_targets([image(1), each], 14)


def naive_boundary(mask):
    """Of a 0/1 mask [H, W]: foreground with a background 4-neighbour, or at the border."""
    height, width = mask.shape
    result = torch.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            for other_y, other_x in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= other_y < height and 0 <= other_x < width
                if mask[y, x] and not (inside and mask[other_y, other_x]):
                    result[y, x] = 1
    return result


@pytest.mark.parametrize("size", [1, 2, 7, 28])
def test_boundary_targets_equal_the_naive_loop(size):
    masks = (torch.rand(12, size, size, generator=torch.Generator().manual_seed(size)) < 0.8).float()
    masks[0], masks[1] = 0, 1
    masks[2] = 0
    masks[2, size // 2, size // 2] = 1
    found = boundary_targets(masks)
    assert torch.equal(found, torch.stack([naive_boundary(mask) for mask in masks]))
    assert found[0].sum() == 0
    assert found[1].sum() == size**2 - max(size - 2, 0) ** 2  # the frame of the crop
    assert torch.equal(found[2], masks[2])  # of one pixel, all is boundary
    assert torch.equal(boundary_targets(masks.bool()), found)


def test_boundary_targets_are_the_positive_laplacian():
    masks = (torch.rand(9, 14, 14, generator=torch.Generator().manual_seed(0)) < 0.7).double()
    kernel = masks.new_tensor([[0, -1, 0], [-1, 4, -1], [0, -1, 0]])
    laplacian = F.conv2d(masks[:, None], kernel[None, None], padding=1)[:, 0]
    assert torch.equal(boundary_targets(masks), (laplacian > 0).double())
    assert boundary_targets(masks[:0]).shape == (0, 14, 14)


def test_boundary_of_a_soft_mask_is_that_of_its_half():
    masks = torch.rand(5, 9, 9, generator=torch.Generator().manual_seed(0))
    masks[0, 0] = 0.5
    assert torch.equal(boundary_targets(masks), boundary_targets((masks >= 0.5).float()))
