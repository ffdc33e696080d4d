"""IndexedBitMasks against Detectron2's BitMasks indexed the same way."""

import pytest
import torch
from detectron2.structures import BitMasks, Instances
from torch.utils._python_dispatch import TorchDispatchMode

from maskrcnn_plus.masks.bit_crops import IndexedBitMasks

HEIGHT, WIDTH = 70, 90


class LargestTensor(TorchDispatchMode):
    """Keeps the bytes of the largest storage that an operator returns and that was not among `known`."""

    def __init__(self, known):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return result


def blobs(num, seed=0):
    """Overlapping blocks and noise, the last one empty."""
    random = torch.Generator().manual_seed(seed)
    masks = torch.zeros(num, HEIGHT, WIDTH, dtype=torch.bool)
    for mask in masks[:-1]:
        top, left = (int(torch.randint(0, side - 5, (1,), generator=random)) for side in (HEIGHT, WIDTH))
        mask[top : top + 30, left : left + 40] = torch.rand(HEIGHT, WIDTH, generator=random)[:30, :40][
            : HEIGHT - top, : WIDTH - left
        ].gt(0.4)
    return masks


def boxes_of(num, low, high, seed):
    random = torch.Generator().manual_seed(seed)
    centres = (torch.rand(num, 2, generator=random) * 1.4 - 0.2) * torch.tensor([WIDTH, HEIGHT])
    sides = low + torch.rand(num, 2, generator=random) * (high - low)
    return torch.cat([centres - sides / 2, centres + sides / 2], dim=1)


@pytest.mark.parametrize("mask_size", [1, 14, 28])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 30), (20, 300)], ids=["subpixel", "small", "large"])
@pytest.mark.parametrize("snap", [0.0, 0.5], ids=["anywhere", "on half pixels"])
def test_crops_equal_bitmasks_bit_for_bit(mask_size, low, high, snap):
    bitmaps = blobs(12)
    index = torch.randint(0, 12, (80,), generator=torch.Generator().manual_seed(1))
    boxes = boxes_of(80, low, high, seed=2)
    boxes = (boxes / snap).round() * snap if snap else boxes
    ours = IndexedBitMasks(bitmaps)[index].crop_and_resize(boxes, mask_size)
    assert ours.dtype == torch.bool
    assert torch.equal(ours, BitMasks(bitmaps[index]).crop_and_resize(boxes, mask_size))
    assert ours.any() or (mask_size == 1 and high == 300)


def test_borders_and_boxes_inside_out():
    bitmaps = torch.ones(1, 10, 12, dtype=torch.bool)
    boxes = torch.tensor(
        [
            [-1.0, -1, 3, 3],
            [-4, 2, 4, 9],
            [5, 5, 13, 11],
            [11.4, 9.4, 12.6, 10.6],
            [-100, -100, 100, 100],
            [12.4, 2, 13, 4],
            [50, 50, 60, 60],
            [-1e6, 0, -1e6 + 5, 5],
            [3, 3, 3, 3],
            [0, 0, 12, 10],
            [8, 8, 2, 2],
            [8, 2, 2, 8],
        ]
    )
    masks = IndexedBitMasks(bitmaps, torch.zeros(len(boxes), dtype=torch.int64))
    for box in range(len(boxes)):  # alone, so that no other box widens its window
        assert torch.equal(
            masks[box].crop_and_resize(boxes[box : box + 1], 14),
            BitMasks(bitmaps).crop_and_resize(boxes[box : box + 1], 14),
        ), boxes[box]
    ours = masks.crop_and_resize(boxes, 14)
    assert torch.equal(ours, BitMasks(masks.tensor).crop_and_resize(boxes, 14))
    assert ours[9].all()
    assert not ours[6:9].any()


def test_is_a_bitmasks_that_indexes_as_one():
    bitmaps = blobs(6)
    ours, theirs = IndexedBitMasks(bitmaps), BitMasks(bitmaps)
    assert isinstance(ours, BitMasks)
    for item in (3, slice(1, 4), torch.tensor([5, 0, 0, 2]), torch.tensor([True, False] * 3), torch.zeros(0).long()):
        a, b = ours[item], theirs[item]
        assert len(a) == len(b)
        assert a.image_size == b.image_size
        assert torch.equal(a.tensor, b.tensor)
        assert torch.equal(a.nonempty(), b.nonempty())
        assert torch.equal(a.get_bounding_boxes().tensor, b.get_bounding_boxes().tensor)
        assert [mask.sum() for mask in a] == [mask.sum() for mask in b]
        assert a.bitmaps is bitmaps
    twice = ours[torch.tensor([4, 1, 1])][torch.tensor([False, True, True])][1]
    assert torch.equal(twice.tensor, bitmaps[1:2])
    joined = Instances.cat([Instances((HEIGHT, WIDTH), gt_masks=each) for each in (ours[2:4], ours[0])])
    assert torch.equal(joined.gt_masks.tensor, bitmaps[[2, 3, 0]])
    assert torch.equal(ours[1:3].to("cpu").tensor, bitmaps[1:3])
    assert ours.device == bitmaps.device
    assert repr(ours[:2]) == "IndexedBitMasks(num_instances=2, num_bitmaps=6)"


def test_no_masks_and_no_rois():
    nothing = IndexedBitMasks(torch.zeros(0, HEIGHT, WIDTH, dtype=torch.bool))
    assert nothing.crop_and_resize(torch.zeros(0, 4), 28).shape == (0, 28, 28)
    assert IndexedBitMasks(blobs(3))[:0].crop_and_resize(torch.zeros(0, 4), 7).shape == (0, 7, 7)
    assert not IndexedBitMasks(torch.zeros(1, 0, 0, dtype=torch.bool)).crop_and_resize(torch.ones(1, 4), 7).any()


def test_nothing_as_large_as_a_mask_per_roi_is_made():
    """300 x 90 x 70 bytes of floats are one image; the crops are the rest."""
    bitmaps = blobs(12)
    index = torch.arange(300) % 12
    boxes = boxes_of(300, 2, 30, seed=3)
    with LargestTensor([bitmaps]) as ours:
        IndexedBitMasks(bitmaps)[index].crop_and_resize(boxes, 4)
    with LargestTensor([bitmaps]) as theirs:
        BitMasks(bitmaps)[index].crop_and_resize(boxes, 4)
    assert theirs.nbytes == 300 * HEIGHT * WIDTH * 4
    assert ours.nbytes == HEIGHT * WIDTH * 4


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (torch.zeros(2, 4), r"shape \(3, 4\)"),
        (torch.full((3, 4), float("nan")), "finite"),
        (torch.tensor([[0.0, 0, 1e9, 5]]).repeat(3, 1), "clip them"),
    ],
)
def test_bad_boxes_are_refused(boxes, message):
    with pytest.raises(ValueError, match=message):
        IndexedBitMasks(blobs(3)).crop_and_resize(boxes, 14)
