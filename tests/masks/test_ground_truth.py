"""Ground-truth masks of every type behind their one interface, against the bitmaps of the same objects."""

import pytest
import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks

from maskrcnn_plus.masks.adapters import PolygonInstanceMasks, adapt_masks
from maskrcnn_plus.masks.bit_crops import IndexedBitMasks
from maskrcnn_plus.masks.ground_truth import GroundTruthMasks
from maskrcnn_plus.masks.label_masks import LabelMapMasks
from maskrcnn_plus.masks.soft_masks import SoftMasks

SIZE = (50, 60)
RECTANGLES = [(10, 8, 30, 40), (30, 20, 45, 32), (2, 2, 3, 3)]  # x0, y0, x1, y1
KINDS = ["label map", "bitmaps", "polygons", "soft label map", "soft bitmaps", "soft polygons"]


def bitmaps():
    masks = torch.zeros(len(RECTANGLES), *SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, RECTANGLES, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def masks_of(kind):
    polygons = PolygonMasks([[torch.tensor([x0, y0, x1, y0, x1, y1, x0, y1])] for x0, y0, x1, y1 in RECTANGLES])
    label_map = (bitmaps().int() * torch.arange(1, 4).view(3, 1, 1)).sum(0)
    types = {"label map": LabelMapMasks(label_map, torch.arange(1, 4)), "bitmaps": BitMasks(bitmaps())}
    masks = adapt_masks({**types, "polygons": polygons}[kind.removeprefix("soft ")], SIZE)
    return SoftMasks(masks) if kind.startswith("soft") else masks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", [[0, 1, 2], [2, 0, 0, 1], []])
def test_measures_boxes_and_bitmaps_are_those_of_the_pixels(kind, index):
    index = torch.tensor(index, dtype=torch.int64)
    masks, expected = masks_of(kind)[index], bitmaps()[index]
    assert isinstance(masks, GroundTruthMasks)
    assert len(masks) == len(index)
    assert tuple(masks.image_size) == SIZE
    assert masks.to("cpu").device == torch.device("cpu")
    assert masks.area().tolist() == expected.flatten(1).sum(1).tolist()
    assert masks.nonempty().tolist() == [True] * len(index)
    assert torch.equal(masks.get_bounding_boxes().tensor, BitMasks(expected).get_bounding_boxes().tensor)
    assert isinstance(masks.to_bitmasks(), BitMasks)
    assert torch.equal(masks.to_bitmasks().tensor, expected)
    boxes = torch.tensor([[20.0, 0, 60, 25], [-5, -5, 70, 70], [2.5, 2.5, 2.5, 2.5], [40, 30, 50, 40]])[: len(index)]
    inside = []
    for mask, (x0, y0, x1, y1) in zip(expected, boxes.tolist(), strict=True):
        y, x = (each + 0.5 for each in mask.nonzero(as_tuple=True))
        inside.append(int(((x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)).sum()))
    assert masks.areas_in_boxes(boxes).tolist() == [masks.area().tolist(), inside]


@pytest.mark.parametrize("kind", KINDS)
def test_crops_are_hard_or_soft(kind):
    boxes = torch.tensor([[5.0, 4, 35, 44], [28, 18, 48, 34], [0, 0, 5, 5]])
    crops = masks_of(kind).crop_and_resize(boxes, 10)
    hard = BitMasks(bitmaps()).crop_and_resize(boxes, 10)
    if kind.startswith("soft"):
        assert crops.dtype == torch.float32
        assert ((crops > 0) & (crops < 1)).any()
        assert ((crops >= 0) & (crops <= 1)).all()
        crops = crops > 0.5
    assert crops.dtype == torch.bool
    # pycocotools rounds the outline of a polygon to whole cells.
    assert (crops != hard).flatten(1).sum(1).max() <= (
        12 if kind.endswith("polygons") else 0 if "soft" not in kind else 8
    )


def test_an_adapter_each_and_none_for_what_needs_none():
    polygons, own = PolygonMasks([[torch.tensor([0, 0, 4, 0, 4, 4])]]), masks_of("label map")
    assert type(adapt_masks(polygons, SIZE)) is PolygonInstanceMasks
    assert type(adapt_masks(BitMasks(bitmaps()))) is IndexedBitMasks
    assert adapt_masks(own) is own
    for adapted in (adapt_masks(polygons, SIZE), adapt_masks(BitMasks(bitmaps()))):
        assert adapt_masks(adapted) is adapted
    theirs = object()
    assert adapt_masks(theirs) is theirs


@pytest.mark.parametrize("kind", KINDS)
def test_instances_of_detectron2_index_join_and_move_them(kind):
    instances = Instances(SIZE, gt_masks=masks_of(kind))
    for item in (slice(1, 3), [2, 0], torch.tensor([2, 0]), torch.tensor([True, False, True]), slice(0, 0)):
        assert torch.equal(instances[item].gt_masks.to_bitmasks().tensor, bitmaps()[item])
    assert torch.equal(instances[1].gt_masks.to_bitmasks().tensor, bitmaps()[1:2])
    joined = Instances.cat([instances[:0], instances[[2, 0]], instances]).to("cpu").gt_masks
    assert type(joined) is type(masks_of(kind))
    assert tuple(joined.image_size) == SIZE
    assert torch.equal(joined.to_bitmasks().tensor, bitmaps()[[2, 0, 0, 1, 2]])
    assert len(list(joined)) == 5


def test_those_of_detectron2s_types_are_of_these_types():
    for kind, theirs in (("polygons", PolygonMasks), ("bitmaps", BitMasks)):
        masks = masks_of(kind)
        assert isinstance(masks, theirs)
        assert len(theirs.cat([masks, masks[:1]])) == 4
    outline = next(iter(masks_of("polygons")))[0]
    assert outline.tolist() == [10, 8, 30, 8, 30, 40, 10, 40]
    bits = masks_of("bitmaps")
    assert bits.cat([bits[:1], bits[1:]]).bitmaps is bits.bitmaps
