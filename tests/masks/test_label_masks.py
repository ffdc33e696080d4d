"""LabelMapMasks against Detectron2's BitMasks, which holds the same masks as bitmaps."""

import time

import numpy as np
import pytest
import torch
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_loss
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from maskrcnn_plus.masks import label_masks
from maskrcnn_plus.masks.label_masks import LabelMapMasks


def blobs(height, width, num_blobs, seed):
    """An int32 label image of ellipses that hide parts of one another."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    label_map = np.zeros((height, width), np.int32)
    for label_id in range(1, num_blobs + 1):
        centre_y, centre_x = rng.uniform(0, [height, width])
        radius_y, radius_x = rng.uniform(0.1, 0.3, 2) * [height, width]
        label_map[((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 <= 1] = label_id
    return torch.from_numpy(label_map)


def random_boxes(num_boxes, height, width, low, high, seed):
    """Boxes with centres in and around the image and sides in [low, high]."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height])
    centres = (torch.rand(num_boxes, 2, generator=generator) * 1.4 - 0.2) * size
    sides = low + torch.rand(num_boxes, 2, generator=generator) * (high - low)
    return torch.cat([centres - sides / 2, centres + sides / 2], dim=1)


def both_crops(label_map, label_ids, boxes, mask_size):
    masks = LabelMapMasks(label_map, label_ids)
    return masks.crop_and_resize(boxes, mask_size), masks.to_bitmasks().crop_and_resize(boxes, mask_size)


@pytest.mark.parametrize("mask_size", [1, 7, 28])
@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (1, 30), (20, 60), (60, 400)], ids=["subpixel", "small", "medium", "huge"]
)
def test_crop_and_resize_equals_bitmasks_bit_for_bit(mask_size, low, high):
    label_map = blobs(90, 110, 40, seed=1)
    label_ids = torch.randint(0, 43, (300,), generator=torch.Generator().manual_seed(2))
    boxes = random_boxes(300, 90, 110, low, high, seed=3)
    ours, bitmasks = both_crops(label_map, label_ids, boxes, mask_size)
    assert ours.dtype == torch.bool
    assert torch.equal(ours, bitmasks)
    assert ours.any() == (mask_size > 1 or high < 400)


@pytest.mark.parametrize("snap", [1.0, 0.5, 0.25])
def test_crop_and_resize_equals_bitmasks_where_coverage_is_exactly_one_half(snap):
    """Boxes on whole or half pixels put many bins exactly on the threshold, where the order of additions decides."""
    label_map = blobs(64, 64, 30, seed=4)
    label_ids = torch.randint(1, 31, (400,), generator=torch.Generator().manual_seed(5))
    boxes = (random_boxes(400, 64, 64, 4, 60, seed=6) / snap).round() * snap
    for mask_size in (14, 28):
        ours, bitmasks = both_crops(label_map, label_ids, boxes, mask_size)
        assert torch.equal(ours, bitmasks)
    ours, bitmasks = both_crops(
        label_map, torch.arange(1, 31), LabelMapMasks(label_map, torch.arange(1, 31)).get_bounding_boxes().tensor, 28
    )
    assert torch.equal(ours, bitmasks)


def test_crop_and_resize_follows_the_border_rule_of_roi_align():
    label_map = torch.ones(10, 12, dtype=torch.int32)
    boxes = torch.tensor(
        [
            [-1.0, -1.0, 3.0, 3.0],
            [-4.0, 2.0, 4.0, 9.0],
            [5.0, 5.0, 13.0, 11.0],
            [11.4, 9.4, 12.6, 10.6],
            [-100.0, -100.0, 100.0, 100.0],
            [50.0, 50.0, 60.0, 60.0],
            [-1e6, 0.0, -1e6 + 5, 5.0],
            [3.0, 3.0, 3.0, 3.0],
            [0.0, 0.0, 12.0, 10.0],
        ]
    )
    inside_out = torch.tensor([[8.0, 8.0, 2.0, 2.0], [8.0, 2.0, 2.0, 8.0]])
    ours, bitmasks = both_crops(label_map, torch.ones(len(boxes), dtype=torch.int64), boxes, 14)
    assert torch.equal(ours, bitmasks)
    assert ours[-1].all()
    assert not ours[5:8].any()
    assert not LabelMapMasks(label_map, torch.ones(2, dtype=torch.int32)).crop_and_resize(inside_out, 14).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2)])
def test_crop_and_resize_on_tiny_images(size):
    label_map = torch.ones(size, dtype=torch.int32)
    boxes = random_boxes(50, *size, 0, 12, seed=8)
    ours, bitmasks = both_crops(label_map, torch.ones(50, dtype=torch.int32), boxes, 5)
    assert torch.equal(ours, bitmasks)


def test_result_does_not_depend_on_chunking_or_autocast(monkeypatch):
    label_map = blobs(90, 110, 40, seed=9)
    label_ids = torch.randint(1, 41, (60,), generator=torch.Generator().manual_seed(10))
    boxes = random_boxes(60, 90, 110, 2, 100, seed=11)
    whole, bitmasks = both_crops(label_map, label_ids, boxes, 28)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = LabelMapMasks(label_map, label_ids).crop_and_resize(boxes, 28)
    monkeypatch.setattr(label_masks, "_CHUNK_NUMEL", 1)
    single, _ = both_crops(label_map, label_ids, boxes, 28)
    assert torch.equal(whole, bitmasks)
    assert torch.equal(single, whole)
    assert torch.equal(mixed, whole)


def test_two_thousand_instances_on_a_large_image_stay_small():
    """As bitmaps these masks would take 32 GB; no temporary may exceed a few copies of the label image."""
    side, cell = 4000, 80
    grid = torch.arange(1, 2501, dtype=torch.int32).reshape(50, 50)
    label_map = grid.repeat_interleave(cell, 0).repeat_interleave(cell, 1)
    masks = LabelMapMasks(label_map, torch.arange(1, 2001))
    start = time.perf_counter()
    boxes = masks.get_bounding_boxes().tensor
    crops = masks.crop_and_resize(boxes, 28)
    areas = masks.area()
    elapsed = time.perf_counter() - start
    expected = torch.stack([torch.arange(2000) % 50 * cell, torch.arange(2000) // 50 * cell], dim=1)
    assert label_map.shape == (side, side)
    assert torch.equal(boxes, torch.cat([expected, expected + cell], dim=1).float())
    assert crops.all()
    assert (areas == cell * cell).all()
    assert elapsed < 5


def test_boxes_areas_and_nonempty_equal_bitmasks():
    label_map = blobs(50, 70, 25, seed=12)
    label_ids = torch.tensor([3, 99, 1, 25, 3, 0, -5, 17])
    masks = LabelMapMasks(label_map, label_ids)
    bitmasks = masks.to_bitmasks()
    assert torch.equal(masks.get_bounding_boxes().tensor, bitmasks.get_bounding_boxes().tensor)
    assert torch.equal(masks.area(), bitmasks.tensor.flatten(1).sum(1))
    assert torch.equal(masks.nonempty(), bitmasks.nonempty())
    assert masks.get_bounding_boxes().tensor[1].tolist() == [0, 0, 0, 0]


def test_a_label_that_wraps_from_row_to_row_is_measured_by_rows():
    label_map = torch.tensor([[0, 0, 7], [7, 7, 7], [7, 0, 0]])
    masks = LabelMapMasks(label_map, torch.tensor([7]))
    assert masks.get_bounding_boxes().tensor.tolist() == [[0, 0, 3, 3]]
    assert masks.area().tolist() == [5]


@pytest.mark.parametrize(
    "item",
    [2, -1, slice(1, 4), slice(0, 0), torch.tensor([4, 0, 0, 4]), torch.tensor([True, False, True, False, True])],
    ids=str,
)
def test_indexing_equals_bitmasks_and_shares_the_label_image(item):
    masks = LabelMapMasks(blobs(20, 30, 5, seed=13), torch.arange(1, 6))
    picked = masks[item]
    assert torch.equal(picked.to_bitmasks().tensor, masks.to_bitmasks()[item].tensor)
    assert picked.label_map.data_ptr() == masks.label_map.data_ptr()
    assert torch.equal(torch.stack([*picked, torch.zeros(20, 30, dtype=torch.bool)])[:-1], picked.to_bitmasks().tensor)


def test_index_out_of_range_is_an_error():
    masks = LabelMapMasks(torch.zeros(4, 4, dtype=torch.int32), torch.tensor([1]))
    with pytest.raises(IndexError):
        masks[1]


def test_empty_masks():
    masks = LabelMapMasks(torch.zeros(6, 8, dtype=torch.int32), torch.zeros(0, dtype=torch.int64))
    assert len(masks) == 0
    assert masks.crop_and_resize(torch.zeros(0, 4), 28).shape == (0, 28, 28)
    assert masks.get_bounding_boxes().tensor.shape == (0, 4)
    assert masks.nonempty().shape == (0,)
    assert len(masks[torch.zeros(0, dtype=torch.bool)]) == 0


def test_cat_of_one_label_image_keeps_it_and_of_two_gives_bitmasks():
    masks = LabelMapMasks(blobs(20, 30, 5, seed=14), torch.arange(1, 6))
    joined = LabelMapMasks.cat([masks[3:], masks[:2]])
    assert isinstance(joined, LabelMapMasks)
    assert joined.label_ids.tolist() == [4, 5, 1, 2]
    other = LabelMapMasks(blobs(20, 30, 3, seed=15), torch.arange(1, 4))
    mixed = LabelMapMasks.cat([masks, other])
    expected = BitMasks.cat([masks.to_bitmasks(), other.to_bitmasks()])
    assert torch.equal(mixed.tensor, expected.tensor)
    with pytest.raises(ValueError, match="one size"):
        LabelMapMasks.cat([masks, LabelMapMasks(torch.zeros(3, 3, dtype=torch.int32), torch.tensor([1]))])
    with pytest.raises(ValueError, match="at least one"):
        LabelMapMasks.cat([])


def test_instances_can_index_concatenate_and_move_the_masks():
    instances = Instances((20, 30))
    instances.gt_masks = LabelMapMasks(blobs(20, 30, 5, seed=16), torch.arange(1, 6))
    instances.gt_classes = torch.arange(5)
    again = Instances.cat([instances[torch.tensor([1, 1])], instances[3]]).to("cpu")
    assert again.gt_masks.label_ids.tolist() == [2, 2, 4]
    assert again.gt_masks.device == torch.device("cpu")
    assert "num_instances=3" in repr(again.gt_masks)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_mask_rcnn_loss_is_the_same_as_with_bitmasks(num_classes):
    label_map = blobs(60, 60, 12, seed=17)
    masks = LabelMapMasks(label_map, torch.arange(1, 13))
    instances = Instances((60, 60))
    instances.proposal_boxes = Boxes(random_boxes(12, 60, 60, 5, 40, seed=18).clamp(0, 60))
    instances.gt_classes = torch.arange(12) % num_classes
    logits = torch.randn(12, num_classes, 28, 28, generator=torch.Generator().manual_seed(19))
    losses = []
    for gt_masks in (masks, masks.to_bitmasks()):
        instances.gt_masks = gt_masks
        with EventStorage():
            losses.append(mask_rcnn_loss(logits, [instances]))
    assert torch.equal(*losses)


def test_bad_input_is_refused():
    label_map = torch.zeros(4, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match="shapes"):
        LabelMapMasks(label_map[0], torch.tensor([1]))
    with pytest.raises(ValueError, match="label_map must hold integers"):
        LabelMapMasks(label_map.float(), torch.tensor([1]))
    with pytest.raises(ValueError, match="label_ids holds values beyond"):
        LabelMapMasks(label_map, torch.tensor([2**40]))
    masks = LabelMapMasks(label_map, torch.tensor([1]))
    with pytest.raises(ValueError, match="one a mask"):
        masks.crop_and_resize(torch.zeros(2, 4), 28)
    for box in (
        [0.0, 0.0, float("nan"), 4.0],
        [0.0, 0.0, float("inf"), 4.0],
        [float("-inf")] * 4,
        [0.0, 0.0, 1e9, 4.0],
    ):
        with pytest.raises(ValueError, match="clip them"):
            masks.crop_and_resize(torch.tensor([box]), 28)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int64])
def test_every_integer_type_of_label_image_works(dtype):
    label_map = blobs(20, 20, 5, seed=20)
    converted = LabelMapMasks(label_map.to(dtype), torch.arange(1, 6, dtype=torch.int32))
    assert torch.equal(converted.label_map, label_map)
