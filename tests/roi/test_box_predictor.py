"""The predictor chooses torchvision's detections, and is Detectron2's with its defaults."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import RoIHeads

from maskrcnn_plus.roi import FastRCNNOutput
from maskrcnn_plus.roi.soft_nms import soft_nms

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SIZE = (90, 120)


def predictor(cls=FastRCNNOutput, num_classes=4, **arguments):
    torch.manual_seed(0)
    return cls(
        ShapeSpec(channels=8),
        box2box_transform=Box2BoxTransform(weights=WEIGHTS),
        num_classes=num_classes,
        test_score_thresh=0.05,
        test_topk_per_image=50,
        **arguments,
    )


def predictions(num, columns, num_classes, seed=0):
    """Proposals of a 120 x 90 image, many across its borders, logits and deltas, some of them of tiny boxes."""
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(num, 2, generator=random) * 140 - 20
    boxes = torch.cat([corners, corners + torch.rand(num, 2, generator=random) * 60 + 1], dim=1)
    logits = torch.randn(num, columns, generator=random) * 2
    deltas = torch.randn(num, num_classes * 4, generator=random)
    deltas[: num // 8, 2::4] -= 50  # widths of a hundredth of a pixel and less
    return boxes, logits, deltas


def torchvision_detections(boxes, logits, deltas):
    """Of logits and deltas with the background first."""
    heads = RoIHeads.__new__(RoIHeads)
    torch.nn.Module.__init__(heads)
    heads.box_coder, heads.score_thresh, heads.nms_thresh, heads.detections_per_img = BoxCoder(WEIGHTS), 0.05, 0.5, 50
    return [result[0] for result in heads.postprocess_detections(logits, deltas, [boxes], [SIZE])]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_unused", [0, 3])
def test_detections_equal_torchvisions(num_unused, seed):
    layers = predictor(num_unused_classes=num_unused, min_box_size=1e-2)
    boxes, logits, deltas = predictions(200, 5 + num_unused, 4, seed)
    logits[:, 5:] -= 1
    # torchvision: background, classes, unused classes. An unused class's boxes are empty here, so that it drops them.
    their_logits = torch.cat([logits[:, 4:5], logits[:, :4], logits[:, 5:]], dim=1)
    empty = torch.tensor([0, 0, -500.0, -500.0]).repeat(200, num_unused)
    their_deltas = torch.cat([torch.zeros(200, 4), deltas, empty], dim=1)
    expected_boxes, expected_scores, expected_labels = torchvision_detections(boxes, their_logits, their_deltas)
    (result,), (indices,) = layers.inference((logits, deltas), [Instances(SIZE, proposal_boxes=Boxes(boxes))])
    assert len(result) == len(expected_boxes) > 30
    assert torch.allclose(result.pred_boxes.tensor, expected_boxes, atol=1e-5)
    assert torch.allclose(result.scores, expected_scores, atol=1e-6)
    assert torch.equal(result.pred_classes + 1, expected_labels)
    assert indices.shape == result.scores.shape
    assert len(
        predictor(num_unused_classes=num_unused).inference(
            (logits, deltas), [Instances(SIZE, proposal_boxes=Boxes(boxes))]
        )[0][0]
    ) >= len(result)


def test_small_boxes_go_before_they_suppress_others_or_count():
    boxes = torch.tensor([[10.0, 10, 50, 50], [-30, 10, 0.005, 50], [20, 20, 20.02, 60], [100, 10, 130, 40]])
    logits = torch.tensor([[3.0, 0, 0, 0, 0]]).repeat(4, 1)
    instances = Instances(SIZE, proposal_boxes=Boxes(boxes))
    found = {}
    for size in (0.0, 1e-2, 1.0, 25.0):
        (result,), (indices,) = predictor(min_box_size=size).inference((logits, torch.zeros(4, 16)), [instances])
        found[size] = sorted(indices.tolist())
        assert result.scores.min() > 0.05
    assert found == {0.0: [0, 1, 2, 3], 1e-2: [0, 2, 3], 1.0: [0, 3], 25.0: [0]}


def test_class_agnostic_boxes():
    layers = predictor(min_box_size=1.0, cls_agnostic_bbox_reg=True)
    boxes = torch.tensor([[10.0, 10, 50, 50], [60, 10, 60.5, 50]])
    logits = torch.tensor([[3.0, 3, 0, 0, 0]] * 2)
    (result,), (indices,) = layers.inference(
        (logits, torch.zeros(2, 4)), [Instances(SIZE, proposal_boxes=Boxes(boxes))]
    )
    assert indices.tolist() == [0] * len(result)
    assert {0, 1} <= set(result.pred_classes.tolist())


@pytest.mark.parametrize(
    "arguments", [{}, {"num_unused_classes": 2}, {"min_box_size": 1.0}, {"soft_nms_method": "linear"}], ids=str
)
def test_no_images_and_images_without_boxes(arguments):
    layers = predictor(**arguments)
    empty = layers(torch.zeros(0, 8))
    assert layers.inference(empty, []) == ([], [])
    (result,), (indices,) = layers.inference(empty, [Instances(SIZE, proposal_boxes=Boxes(torch.zeros(0, 4)))])
    assert len(result) == len(indices) == 0


def test_defaults_are_detectron2s():
    ours, theirs = predictor(), predictor(FastRCNNOutputLayers)
    ours.load_state_dict(theirs.state_dict())
    boxes, logits, deltas = predictions(50, 5, 4)
    instances = [Instances(SIZE, proposal_boxes=Boxes(boxes))]
    (a,), _ = ours.inference((logits, deltas), instances)
    (b,), _ = theirs.inference((logits, deltas), instances)
    assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
    assert torch.equal(a.scores, b.scores)


def test_loss_has_the_unused_classes_in_its_softmax():
    layers = predictor(num_unused_classes=3)
    assert layers.cls_score.weight.shape == (8, 8)
    boxes, logits, deltas = predictions(40, 8, 4)
    logits.requires_grad_()
    classes = torch.randint(0, 5, (40,), generator=torch.Generator().manual_seed(1))
    proposals = Instances(SIZE, proposal_boxes=Boxes(boxes), gt_boxes=Boxes(boxes), gt_classes=classes)
    with EventStorage() as storage:
        losses = layers.losses((logits, deltas), [proposals])
        accuracy = storage.latest()["fast_rcnn/cls_accuracy"][0]
    assert torch.allclose(losses["loss_cls"], F.cross_entropy(logits, classes))
    assert accuracy == pytest.approx((logits[:, :5].argmax(1) == classes).float().mean().item())
    (gradient,) = torch.autograd.grad(losses["loss_cls"], logits)
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, classes), logits)
    assert torch.allclose(gradient, expected, atol=1e-7)


def test_loss_without_proposals_is_zero():
    layers = predictor(num_unused_classes=3)
    proposals = Instances(
        SIZE,
        proposal_boxes=Boxes(torch.zeros(0, 4)),
        gt_boxes=Boxes(torch.zeros(0, 4)),
        gt_classes=torch.zeros(0, dtype=torch.int64),
    )
    with EventStorage():
        losses = layers.losses(layers(torch.zeros(0, 8)), [proposals])
    assert losses["loss_cls"].item() == losses["loss_box_reg"].item() == 0


def test_probabilities_are_of_the_softmax_over_all():
    layers = predictor(num_unused_classes=3)
    boxes, logits, deltas = predictions(7, 8, 4)
    instances = [Instances(SIZE, proposal_boxes=Boxes(part)) for part in (boxes[:2], boxes[2:2], boxes[2:])]
    probs = layers.predict_probs((logits, deltas), instances)
    assert [len(part) for part in probs] == [2, 0, 5]
    assert torch.equal(torch.cat(probs), logits.softmax(1)[:, :5])


def test_of_a_yacs_config():
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 6
    layers = FastRCNNOutput(cfg, ShapeSpec(channels=3))
    assert (layers.num_classes, layers.num_unused_classes, layers.min_box_size) == (6, 0, 0.0)


@pytest.mark.parametrize("arguments", [{"num_unused_classes": -1}, {"min_box_size": -1e-3}], ids=str)
def test_negative_numbers_are_refused(arguments):
    with pytest.raises(ValueError, match="must not be negative"):
        predictor(**arguments)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("agnostic", [False, True])
def test_soft_nms_class_by_class(method, agnostic):
    layers = predictor(soft_nms_method=method, soft_nms_sigma=0.3, cls_agnostic_bbox_reg=agnostic, test_nms_thresh=0.1)
    boxes, logits, deltas = predictions(150, 5, 1 if agnostic else 4)
    instances = [Instances(SIZE, proposal_boxes=Boxes(boxes))]
    (result,), (indices,) = layers.inference((logits, deltas), instances)
    probs = layers.predict_probs((logits, deltas), instances)[0]
    decoded = layers.predict_boxes((logits, deltas), instances)[0].view(150, -1, 4)
    decoded[..., 0::2].clamp_(0, SIZE[1])
    decoded[..., 1::2].clamp_(0, SIZE[0])
    expected = []
    for number in range(4):
        above = (probs[:, number] > 0.05).nonzero()[:, 0]
        kept, scores = soft_nms(
            decoded[above, 0 if agnostic else number],
            probs[above, number],
            method=method,
            iou_threshold=0.1,
            sigma=0.3,
            score_threshold=0.05,
        )
        expected += [(score, number, row) for score, row in zip(scores.tolist(), above[kept].tolist(), strict=True)]
    expected = sorted(expected, reverse=True)[:50]
    found = list(zip(result.scores.tolist(), result.pred_classes.tolist(), indices.tolist(), strict=True))
    assert len(found) == len(expected) == 50
    assert [each[1:] for each in found] == [each[1:] for each in expected]
    assert [each[0] for each in found] == pytest.approx([each[0] for each in expected])
    assert (result.scores < probs[indices, result.pred_classes] - 1e-3).any()
    chosen = decoded[indices, torch.zeros_like(indices) if agnostic else result.pred_classes]
    assert torch.equal(result.pred_boxes.tensor, chosen)


def test_soft_nms_that_drops_every_overlap_is_nms():
    boxes, logits, deltas = predictions(200, 5, 4)
    logits[:, :4] *= 3
    instances = [Instances(SIZE, proposal_boxes=Boxes(boxes))]
    found = []
    for arguments in ({}, {"soft_nms_method": "linear"}, {"soft_nms_method": "gaussian", "soft_nms_sigma": 1e-12}):
        layers = predictor(min_box_size=1.0, **arguments)
        layers.test_score_thresh = 0.6  # half of 1 is below it
        layers.test_nms_thresh = 0.0 if "soft_nms_sigma" in arguments else 0.5
        found.append(layers.inference((logits, deltas), instances))
    (hard,), (hard_indices,) = found[0]
    (linear,), (linear_indices,) = found[1]
    assert torch.equal(linear_indices, hard_indices)
    assert torch.equal(linear.scores, hard.scores)
    assert torch.equal(linear.pred_boxes.tensor, hard.pred_boxes.tensor)
    layers = predictor(min_box_size=1.0)
    layers.test_score_thresh, layers.test_nms_thresh = 0.6, 0.0
    (none,), (none_indices,) = layers.inference((logits, deltas), instances)
    assert torch.equal(found[2][1][0], none_indices)
    assert 5 < len(none) < len(hard)


@pytest.mark.parametrize("arguments", [{"soft_nms_method": "hard"}, {"soft_nms_sigma": 0.0}], ids=str)
def test_wrong_soft_nms_is_refused(arguments):
    with pytest.raises(ValueError, match="linear, gaussian"):
        predictor(**arguments)
