"""Test-time flips: what several orientations of an image give is averaged, and does not depend on its own."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from small_models import build_predictor, small_config
from torchvision.ops import box_iou

from maskrcnn_plus.config import add_config, detectron2_config
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.export.graph import WholeGraph
from maskrcnn_plus.flips import ORIENTATIONS, merge_flips
from maskrcnn_plus.mask_rcnn import without_dense_masks
from maskrcnn_plus.overrides import apply_overrides
from maskrcnn_plus.roi.box_predictor import last_box_predictor


def instances(boxes, scores, classes=None):
    boxes, scores = torch.tensor(boxes, dtype=torch.float32).view(-1, 4), torch.tensor(scores, dtype=torch.float32)
    classes = torch.zeros(len(scores), dtype=torch.int64) if classes is None else torch.tensor(classes)
    return Instances((100, 120), pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)


def test_boxes_of_an_object_become_their_mean():
    a, b = [10.0, 10, 30, 30], [12.0, 10, 32, 30]
    alone = [60.0, 60, 80, 80]
    found = [instances([a, alone], [0.8, 0.9]), instances([b], [0.4])]
    merged = merge_flips(found, min_score=0.1, max_iou=0.5, limit=10)
    torch.testing.assert_close(merged.scores, torch.tensor([0.6, 0.45]))
    expected = [[(0.8 * x + 0.4 * y) / 1.2 for x, y in zip(a, b, strict=True)], alone]
    torch.testing.assert_close(merged.pred_boxes.tensor, torch.tensor(expected))
    assert len(merge_flips(found, min_score=0.5, max_iou=0.5, limit=10)) == 1
    assert len(merge_flips(found, min_score=0.1, max_iou=0.5, limit=1)) == 1


def test_others_stay_apart():
    """Another class, two of one orientation, and an IoU below a half."""
    a, near, far = [10.0, 10, 30, 30], [12.0, 10, 32, 30], [10.0, 10, 30, 60]
    cases = [
        ([instances([a], [0.8], [0]), instances([near], [0.6], [1])], [0.4, 0.3]),
        ([instances([a, near], [0.8, 0.6]), instances([], [])], [0.4, 0.3]),
        ([instances([a], [0.8]), instances([far], [0.6])], [0.4, 0.3]),
    ]
    for found, scores in cases:
        merged = merge_flips(found, min_score=0.0, max_iou=1.0, limit=10)
        torch.testing.assert_close(merged.scores, torch.tensor(scores))
    assert len(merge_flips(cases[1][0], min_score=0.0, max_iou=0.5, limit=10)) == 1
    assert len(merge_flips([instances([], [])] * 4, min_score=0.0, max_iou=0.5, limit=10)) == 0


def loop(found):
    """Groups of (orientation, index), the best first, by the definition."""
    free = {(k, n) for k, each in enumerate(found) for n in range(len(each))}
    groups = []
    while free:
        best = max(free, key=lambda at: found[at[0]].scores[at[1]])
        group, (own, row) = [best], best
        free.remove(best)
        for other in range(len(found)):
            rivals = [
                at
                for at in free
                if at[0] == other != own and found[other].pred_classes[at[1]] == found[own].pred_classes[row]
            ]
            box = found[own].pred_boxes.tensor[row : row + 1]
            ious = {at: float(box_iou(box, found[other].pred_boxes.tensor[at[1] : at[1] + 1])) for at in rivals}
            if ious and max(ious.values()) >= 0.5:
                group.append(max(ious, key=ious.get))
                free.remove(group[-1])
        groups.append(group)
    return groups


@pytest.mark.parametrize("number", [1, 2, 4])
def test_equals_a_loop(number):
    generator = torch.Generator().manual_seed(number)
    found = []
    for _ in range(number):
        corners = torch.rand(40, 2, generator=generator) * 60
        sides = 10 + 20 * torch.rand(40, 2, generator=generator)
        scores = torch.rand(40, generator=generator)
        found.append(instances(torch.cat([corners, corners + sides], 1).tolist(), scores.tolist(), [0, 1] * 20))
    merged = merge_flips(found, min_score=0.0, max_iou=1.0, limit=1000)
    boxes, scores = [], []
    for group in loop(found):
        each = torch.stack([found[k].scores[n] for k, n in group])
        boxes.append(
            (torch.stack([found[k].pred_boxes.tensor[n] for k, n in group]) * each[:, None]).sum(0) / each.sum()
        )
        scores.append(each.sum() / number)
    order = torch.stack(scores).argsort(descending=True)
    torch.testing.assert_close(merged.scores, torch.stack(scores)[order])
    torch.testing.assert_close(merged.pred_boxes.tensor, torch.stack(boxes)[order])


@pytest.fixture(scope="module", params=["nuclei/mask_rcnn_lite0_fpn", "nuclei/mask_rcnn_plus"])
def model(request):
    """One with one box head, and a cascade with mask scoring."""
    return build_predictor(small_config(request.param)).model


def see(model, image, flips, given=None):
    """Raw results of an image [C, h, w]."""
    model.flips = flips
    with torch.no_grad(), without_dense_masks(model):
        (found,) = model.inference([{"image": image}], given, do_postprocess=False)
    model.flips = 1
    return found


def turn(found, dims):
    """Boxes and masks of the image with `dims` turned round."""
    height, width = found.image_size
    box = found.pred_boxes.tensor.clone()
    if -1 in dims:
        box[:, [0, 2]] = width - box[:, [2, 0]]
    if -2 in dims:
        box[:, [1, 3]] = height - box[:, [3, 1]]
    return box, found.pred_masks.flip(dims)


@pytest.mark.parametrize("flips", [2, 4])
def test_the_orientation_of_an_image_does_not_matter(model, flips):
    image = (torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0)) * 255).round()
    straight = see(model, image, flips)
    assert len(straight) > 5
    assert straight.image_size == (96, 128)
    for dims in ORIENTATIONS[flips]:
        turned = see(model, image.flip(dims), flips)
        torch.testing.assert_close(turned.scores, straight.scores, rtol=0, atol=1e-4)
        boxes, masks = turn(turned, dims)
        torch.testing.assert_close(boxes, straight.pred_boxes.tensor, rtol=0, atol=1e-2)
        torch.testing.assert_close(masks, straight.pred_masks, rtol=0, atol=1e-3)


def test_masks_are_the_mean_of_those_in_the_same_boxes(model):
    image = (torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(1)) * 255).round()
    found = see(model, image, 4)
    fields = "pred_boxes", "scores", "pred_classes"
    masks, scores = [], []
    given = Instances((96, 128), **{name: found.get(name) for name in fields})
    for dims in ORIENTATIONS[4]:
        there = Instances((96, 128), **{name: given.get(name) for name in fields})
        there.pred_boxes = Boxes(turn(found, dims)[0])
        single = see(model, image.flip(dims), 1, [there])
        masks.append(single.pred_masks.flip(dims))
        scores.append(single.scores)
    again = see(model, image, 4, [given])
    torch.testing.assert_close(again.pred_masks, torch.stack(masks).mean(0), rtol=0, atol=1e-4)
    torch.testing.assert_close(again.scores, torch.stack(scores).mean(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.pred_masks, again.pred_masks, rtol=0, atol=1e-4)


def test_an_image_of_a_batch_is_as_alone_and_one_without_objects_has_none(model):
    images = [torch.rand(3, 64, 96) * 255, torch.rand(3, 96, 64) * 255]
    model.flips = 4
    with torch.no_grad():
        both = model([{"image": image, "height": 128, "width": 100} for image in images])
        (alone,) = model([{"image": images[1], "height": 128, "width": 100}])
    assert torch.equal(both[1]["instances"].scores, alone["instances"].scores)
    assert list(both[1]["instances"].pred_masks_rle) == list(alone["instances"].pred_masks_rle)
    model.flips = 1
    predictor = last_box_predictor(model.roi_heads)
    threshold, predictor.test_score_thresh = predictor.test_score_thresh, 1.0
    assert len(see(model, images[0], 4)) == 0
    predictor.test_score_thresh = threshold


def test_what_has_no_flips_says_so(model):
    with pytest.raises(ValueError, match="flips must be 1, 2 or 4, got 3"):
        build_predictor(apply_overrides(small_config("nuclei/mask_rcnn_lite0_fpn"), ["model.flips=3"]))
    model.flips = 2
    with pytest.raises(UserError, match=r"model\.flips=2: one graph sees an image in one orientation"):
        WholeGraph(model, 10)
    with pytest.raises(ValueError, match="A trace sees an image in one orientation"):
        torch.jit.trace(lambda image: model.inference([{"image": image}])[0]["instances"].scores, torch.rand(3, 64, 64))
    model.flips = 1


def test_yacs_configs_set_it():
    for name in ("mask_rcnn_R_50_FPN_1x", "mask_rcnn_R_50_C4_1x"):
        cfg = detectron2_config(f"COCO-InstanceSegmentation/{name}.yaml")
        add_config(cfg)
        cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE, cfg.MODEL.FLIPS = "MaskRCNNPlus", "meta", 2
        with torch.device("meta"):
            if name.endswith("FPN_1x"):
                assert build_model(cfg).flips == 2
            else:
                with pytest.raises(ValueError, match="RoI heads that are a kind of StandardROIHeads"):
                    build_model(cfg)
