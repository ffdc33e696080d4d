"""The graph, before it is traced, finds what the model finds; what it cannot say again is refused by name."""

import pytest
import torch
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes
from small_models import VARIANTS, build_predictor, scoring_config, small_config, torchvision_config

from maskrcnn_plus.config import get_config
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.export.graph import WholeGraph, assign_levels
from maskrcnn_plus.export.parts import get_parts
from maskrcnn_plus.roi import PyramidROIAlign

KINDS = {
    "80 classes": lambda: small_config("nuclei/mask_rcnn_lite0_fpn", 80),
    "plus": lambda: small_config("nuclei/mask_rcnn_plus"),
    "boundary": lambda: small_config(f"{VARIANTS}boundary", 2),
    "scoring": scoring_config,
    "torchvision": torchvision_config,
}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_finds_what_the_model_finds(kind):
    model = build_predictor(KINDS[kind]()).model
    graph = WholeGraph(model, 20).eval()
    for size in ((64, 96), (150, 71)):
        image = torch.rand(3, *size, generator=torch.Generator().manual_seed(1)) * 255
        (expected,) = model.inference([{"image": image}], do_postprocess=False)
        boxes, scores, classes, masks, count = graph(image[None])
        number = len(expected)
        assert count == number > 5
        assert boxes.shape == (20, 4)
        assert torch.equal(classes[:number], expected.pred_classes)
        torch.testing.assert_close(boxes[:number], expected.pred_boxes.tensor, atol=1e-3, rtol=0)
        torch.testing.assert_close(scores[:number], expected.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(masks[:number], expected.pred_masks[:, 0], atol=5e-3, rtol=0)  # steep edges
        assert not any(each[number:].any() for each in (boxes, scores, classes, masks))


@torch.no_grad()
def test_nothing_is_found_without_proposals_and_below_the_threshold():
    model = build_predictor(small_config("nuclei/mask_rcnn_lite0_fpn")).model
    image = torch.rand(1, 3, 64, 64) * 255
    model.roi_heads.box_predictor.test_score_thresh = 1.0
    assert WholeGraph(model, 20)(image)[-1] == 0
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    assert WholeGraph(model, 20)(image)[-1] > 0
    model.proposal_generator.min_box_size = 1e4
    outputs = WholeGraph(model, 20)(image)
    assert outputs[-1] == 0
    assert not any(each.any() for each in outputs)


def test_levels_are_detectron2s():
    pooler = PyramidROIAlign(7, (1 / 4, 1 / 8, 1 / 16, 1 / 32), 0, canonical_box_size=112)
    sides = torch.cat([112 * 2.0 ** torch.arange(-6, 5), torch.rand(500) * 900, torch.zeros(1)])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides.flip(0)], 1)
    boxes = torch.cat([boxes, torch.stack([sides * 0, sides * 0, sides, sides], 1)])
    assert torch.equal(assign_levels(boxes, pooler), assign_boxes_to_levels([Boxes(boxes)], 2, 5, 112, 4))


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("soft_nms", r"model\.roi_heads\.box_predictor\.soft_nms_method=\w+: Soft-NMS"),
        ("point_rend", r"model\.roi_heads\.mask_head \(PointRendHead\) cannot be exported"),
    ],
)
def test_other_parts_are_refused_by_name(variant, message):
    cfg = get_config(f"{VARIANTS}{variant}")
    cfg.model.backbone.bottom_up.name, cfg.model.backbone.bottom_up.weights = "test_resnet.r160_in1k", ""
    with pytest.raises(UserError, match=message):
        get_parts(build_predictor(cfg).model)


def test_parts_of_ones_own_are_refused_by_name():
    model = build_predictor(small_config("nuclei/mask_rcnn_lite0_fpn")).model
    rpn = model.proposal_generator
    model.proposal_generator = type("MyRPN", (type(rpn),), {}).__new__(type("MyRPN", (type(rpn),), {}))
    with pytest.raises(UserError, match=r"model\.proposal_generator \(MyRPN\) cannot be exported. Known are RPN"):
        get_parts(model)
