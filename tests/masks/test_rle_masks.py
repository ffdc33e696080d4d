"""RLEMasks against dense masks: as a sequence, as a field of Instances, and with bad input."""

import copy
import json
import pickle

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.structures import Boxes, Instances

from maskrcnn_plus.masks.label_map import masks_to_rles
from maskrcnn_plus.masks.rle_masks import RLEMasks, add_dense_masks, encode_masks, instance_masks


def random_masks(count, height, width, seed=0):
    """[count, height, width] bool: noise, rectangles, runs over several columns, empty and full."""
    random = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, height, width, generator=random) > torch.rand(count, 1, 1, generator=random)
    if count > 4:
        masks[1] = False
        masks[2] = True
        masks[3] = False
        masks[3, height // 3 : height // 2 + 1, width // 4 :] = True
        masks[4] = torch.arange(width) > width // 2
    return masks


def make_instances(masks, **fields):
    count = len(masks)
    return Instances(tuple(masks.shape[1:]), scores=torch.linspace(0.9, 0.1, count), pred_masks=masks, **fields)


@pytest.mark.parametrize("shape", [(0, 5, 7), (1, 1, 1), (9, 31, 20), (6, 1, 40), (6, 40, 1), (300, 8, 9)])
def test_dense_round_trip_areas_and_elements(shape):
    masks = random_masks(*shape)
    rles = RLEMasks.from_dense(masks)
    dense = rles.to_dense()
    assert (len(rles), rles.image_size, dense.dtype) == (shape[0], shape[1:], torch.bool)
    assert torch.equal(dense, masks)
    assert dense.is_contiguous()
    assert torch.equal(rles.areas(), masks.flatten(1).sum(1))
    assert list(rles) == [rles[index] for index in range(len(rles))] == masks_to_rles(masks)
    assert all(np.array_equal(coco_mask.decode(rle), mask) for rle, mask in zip(rles, masks.numpy(), strict=True))
    assert json.loads(json.dumps(list(rles))) == list(rles)


@pytest.mark.parametrize(
    "item",
    [
        slice(None),
        slice(7, 2, -2),
        slice(3, 3),
        [5, 5, 0],
        [],
        [True] * 4 + [False] * 5,
        torch.tensor([8, -1, 2]),
        torch.tensor([], dtype=torch.int64),
        torch.arange(9) % 2 == 0,
        np.array([1, 4]),
        np.arange(9) > 6,
    ],
)
def test_selects_as_a_tensor_does(item):
    masks = random_masks(9, 12, 17)
    chosen = RLEMasks.from_dense(masks)[item]
    expected = masks[torch.arange(9)[item]] if not (isinstance(item, slice) and item.step) else masks[[7, 5, 3]]
    assert isinstance(chosen, RLEMasks)
    assert torch.equal(chosen.to_dense(), expected)


def test_an_int_gives_one_rle_and_a_wrong_index_is_refused():
    rles = RLEMasks.from_dense(random_masks(9, 12, 17))
    for index in (-1, np.int64(8), torch.tensor(8)):
        assert rles[index] == list(rles)[8]
    for index in (9, -10, torch.tensor([0, 9]), torch.ones(8, dtype=torch.bool), torch.tensor([[1]]), torch.ones(2)):
        with pytest.raises(IndexError):
            rles[index]


def test_cannot_be_changed_from_outside():
    masks = random_masks(6, 8, 9)
    source = masks_to_rles(masks)
    rles = RLEMasks(source, (8, 9))
    source[0]["counts"] = source[0]["size"][0] = None
    rles[2]["counts"] = rles[2]["size"][0] = None
    with pytest.raises(TypeError):
        rles[0] = rles[1]
    assert torch.equal(rles.to_dense(), masks)
    for again in (copy.deepcopy(rles), pickle.loads(pickle.dumps(rles)), rles.to("cpu", non_blocking=True)):
        assert torch.equal(again.to_dense(), masks)


def test_all_forms_of_counts_become_text():
    mask = np.asfortranarray(random_masks(1, 9, 7)[0], dtype=np.uint8)
    compressed = coco_mask.encode(mask)
    bounds = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel(order="F"), [2]]))).tolist()
    for counts in (compressed["counts"], compressed["counts"].decode(), np.diff([0, *bounds]).tolist()):
        (rle,) = RLEMasks([{"size": [9, 7], "counts": counts}], (9, 7))
        assert rle == {"size": [9, 7], "counts": compressed["counts"].decode()}


@pytest.mark.parametrize(
    ("rle", "text"),
    [
        ({"size": [4, 5], "counts": [0, 21]}, r"RLE 1 .*corrupt"),
        ({"size": [4, 5], "counts": "\N{SNOWMAN}"}, "RLE 1 "),
        ({"size": [4, 5], "counts": "o"}, "RLE 1 "),
        ({"size": [4, 5]}, "RLE 1 "),
        ({"size": [5, 4], "counts": [20]}, r"RLE 1 has size \[5, 4\].*\[4, 5\]"),
    ],
)
def test_a_bad_rle_is_refused_by_its_index(rle, text):
    with pytest.raises(ValueError, match=text):
        RLEMasks([{"size": [4, 5], "counts": [20]}, rle], (4, 5))


def test_is_a_field_of_instances():
    masks = random_masks(9, 12, 17)
    instances = encode_masks(make_instances(masks, pred_boxes=Boxes(torch.rand(9, 4))))
    few = instances[instances.scores > 0.5]
    assert isinstance(few.pred_masks_rle, RLEMasks)
    assert torch.equal(few.pred_masks_rle.to_dense(), masks[:4])
    assert torch.equal(instances[3].pred_masks_rle.to_dense(), masks[3:4])
    joined = Instances.cat([few, instances[7:].to("cpu"), instances[:0]])
    assert torch.equal(joined.pred_masks_rle.to_dense(), masks[[0, 1, 2, 3, 7, 8]])
    assert "num_instances=9, image_height=12, image_width=17" in str(instances)
    for wrong in ([], [few.pred_masks_rle, RLEMasks([], (3, 4))]):
        with pytest.raises(ValueError, match="one image size"):
            RLEMasks.cat(wrong)


def test_encoding_and_adding_dense_masks_undo_each_other():
    masks = random_masks(9, 12, 17)
    instances = make_instances(masks)
    encoded = encode_masks(instances)
    assert set(encoded.get_fields()) == {"scores", "pred_masks_rle"}
    assert encode_masks(encoded).pred_masks_rle is encoded.pred_masks_rle
    both = add_dense_masks(encoded)
    assert set(both.get_fields()) == {"scores", "pred_masks_rle", "pred_masks"}
    assert torch.equal(both.pred_masks, masks)
    assert torch.equal(instance_masks(both, [4, 1]).to_dense(), masks[[4, 1]])
    assert set(instances.get_fields()) == {"scores", "pred_masks"}  # untouched
    assert add_dense_masks(encode_masks(instances[:0])).pred_masks.shape == (0, 12, 17)


def test_instances_with_bad_masks_are_refused():
    with pytest.raises(ValueError, match=r"no masks.*model\.roi_heads"):
        encode_masks(Instances((3, 4), scores=torch.ones(1)))
    with pytest.raises(ValueError, match=r"size \[4, 3\].*\[3, 4\]"):
        encode_masks(Instances((3, 4), pred_masks=torch.ones(1, 4, 3, dtype=torch.bool)))
    with pytest.raises(ValueError, match=r"size \[4, 3\].*\[3, 4\]"):
        encode_masks(Instances((3, 4), pred_masks_rle=RLEMasks.from_dense(torch.ones(1, 4, 3, dtype=torch.bool))))
    with pytest.raises(ValueError, match=r"pred_masks_rle: RLE 0 .*\[4, 3\].*\[3, 4\]"):
        encode_masks(Instances((3, 4), pred_masks_rle=[{"size": [4, 3], "counts": [12]}]))
    with pytest.raises(TypeError, match="threshold"):
        encode_masks(Instances((3, 4), pred_masks=torch.rand(1, 3, 4)))
