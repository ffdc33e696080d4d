"""Suppression of many groups equals torchvision's of each alone; BatchedRPN equals Detectron2's RPN."""

import pytest
import torch
from detectron2.config import get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import RPN, build_proposal_generator
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torchvision.ops import nms

from maskrcnn_plus.config import detectron2_config
from maskrcnn_plus.ops import extension
from maskrcnn_plus.rpn import BatchedRPN, batched_nms


def _boxes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 40], dim=1)
    return boxes, torch.rand(count, generator=generator), torch.randint(0, 6, (count,), generator=generator)


@pytest.mark.parametrize("count", [0, 1, 2, 17, 300, 2000])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_equals_torchvision_on_each_group(count, threshold):
    boxes, scores, groups = _boxes(count, seed=count)
    kept = torch.zeros(count, dtype=torch.bool)
    for group in groups.unique():
        (members,) = (groups == group).nonzero(as_tuple=True)
        kept[members[nms(boxes[members], scores[members], threshold)]] = True
    expected = scores.argsort(descending=True)
    assert torch.equal(batched_nms(boxes, scores, groups, threshold), expected[kept[expected]])


def test_equal_boxes_and_boxes_without_area():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [2, 2, 2, 2], [2, 2, 2, 2], [9, 9, 5, 5]])
    scores = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.5])
    groups = torch.zeros(5, dtype=torch.int64)
    assert batched_nms(boxes, scores, groups, 0.5).tolist() == nms(boxes, scores, 0.5).tolist()
    assert batched_nms(boxes, scores, torch.arange(5), 0.5).tolist() == [4, 2, 3, 1, 0]


@pytest.mark.skipif(not extension.is_available(), reason=extension.why_missing())
def test_wrong_shapes_are_refused_and_opcheck_passes():
    boxes, scores, groups = _boxes(9, seed=0)
    for arguments in ((boxes[:, :3], scores, groups), (boxes, scores[1:], groups), (boxes, scores, groups.float())):
        with pytest.raises(ValueError, match="batched_nms: boxes must be"):
            batched_nms(*arguments, 0.5)
    results = torch.library.opcheck(torch.ops.maskrcnn_plus.batched_nms, (boxes, scores, groups, 0.5))
    assert set(results.values()) == {"SUCCESS"}


def _pair():
    config = detectron2_config("common/models/mask_rcnn_fpn.py").model.proposal_generator
    config.head.in_channels = 8
    config.pre_nms_topk, config.post_nms_topk = (200, 100), (50, 30)
    torch.manual_seed(0)
    stock = instantiate(config)
    config._target_ = BatchedRPN
    ours = instantiate(config)
    ours.load_state_dict(stock.state_dict())
    for parameter in [*ours.parameters(), *stock.parameters()]:
        parameter.data.mul_(30)  # proposals that differ from the anchors
    return ours, stock


def _inputs(images=2, size=128):
    generator = torch.Generator().manual_seed(1)
    strides = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    features = {n: torch.randn(images, 8, size // s, size // s, generator=generator) for n, s in strides.items()}
    sizes = [(size, size - 8 * i) for i in range(images)]
    truth = []
    for height, width in sizes:
        boxes = Boxes(torch.tensor([[4.0, 6, 50, 60], [30, 20, 90, 100]]))
        truth.append(Instances((height, width), gt_boxes=boxes, gt_classes=torch.zeros(2, dtype=torch.int64)))
    return ImageList(torch.zeros(images, 3, size, size), sizes), features, truth


@pytest.mark.parametrize("training", [True, False])
def test_proposals_and_losses_equal_detectron2s(training):
    images, features, truth = _inputs()
    results = []
    for rpn in _pair():
        rpn.train(training)
        torch.manual_seed(0)
        with EventStorage(0):
            results.append(rpn(images, features, truth if training else None))
    (ours, our_losses), (stock, stock_losses) = results
    for mine, theirs in zip(ours, stock, strict=True):
        assert len(mine) == (30 if not training else 50)
        assert mine.image_size == theirs.image_size
        torch.testing.assert_close(mine.proposal_boxes.tensor, theirs.proposal_boxes.tensor, atol=0, rtol=0)
        torch.testing.assert_close(mine.objectness_logits, theirs.objectness_logits, atol=0, rtol=0)
    assert our_losses == stock_losses


def test_predictions_that_are_not_finite():
    images, features, truth = _inputs()
    features["p3"][1, 0, 0, 0] = torch.nan
    rpn, stock = _pair()
    with EventStorage(0), pytest.raises(FloatingPointError, match="diverged"):
        rpn.train()(images, features, truth)
    mine, theirs = (module.eval()(images, features)[0] for module in (rpn, stock))
    for a, b in zip(mine, theirs, strict=True):
        assert torch.isfinite(a.proposal_boxes.tensor).all()
        assert torch.equal(a.proposal_boxes.tensor, b.proposal_boxes.tensor)


def test_boxes_without_extent_are_dropped():
    rpn, _ = _pair()
    rpn.min_box_size = 1e6
    images, features, _ = _inputs()
    assert [len(entry) for entry in rpn.eval()(images, features)[0]] == [0, 0]


def test_builds_from_a_yacs_config_by_name():
    cfg = get_cfg()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "BatchedRPN"
    rpn = build_proposal_generator(cfg, {"res4": ShapeSpec(channels=16, stride=16)})
    assert type(rpn) is BatchedRPN
    assert isinstance(rpn, RPN)
