"""Cascade RPN in training and inference, at the edges, and as part of a model."""

import pytest
import torch
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN, build_proposal_generator
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

from maskrcnn_plus.config import get_config, skip_pretrained
from maskrcnn_plus.inference.optimize import optimize_for_inference
from maskrcnn_plus.rpn.cascade import CascadeRPN, CascadeRPNHead, square_anchors

STRIDES = {"p2": 4, "p3": 8}
LOSSES = {"loss_rpn_initial_loc", "loss_rpn_cls", "loss_rpn_loc"}
INITIAL_WEIGHTS, FINAL_WEIGHTS = (10.0, 10.0, 2.0, 2.0), (20.0, 20.0, 10.0, 10.0)


@pytest.fixture(autouse=True)
def one_thread():
    """Maps this small are slower on several threads, much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(channels=6, spread=0.15, **options):
    """A network whose boxes move from the start."""
    torch.manual_seed(0)
    rpn = CascadeRPN(
        **{
            "in_features": list(STRIDES),
            "head": CascadeRPNHead(channels),
            "anchor_generator": square_anchors(list(STRIDES.values()), 4.0),
            "anchor_matcher": Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
            "initial_box2box_transform": Box2BoxTransform(INITIAL_WEIGHTS),
            "box2box_transform": Box2BoxTransform(FINAL_WEIGHTS),
            "batch_size_per_image": 256,
            "positive_fraction": 0.5,
            "pre_nms_topk": (1000, 1000),
            "post_nms_topk": (100, 50),
            **options,
        }
    )
    if spread:
        for parameter in rpn.parameters():
            torch.nn.init.normal_(parameter, std=spread)
    return rpn


def objects(boxes, size):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.zeros(len(boxes), dtype=torch.int64))


def inputs(side=32, channels=6, sizes=((32, 32), (32, 28)), truth=None):
    generator = torch.Generator().manual_seed(1)
    features = {
        name: torch.randn(len(sizes), channels, side // stride, side // stride, generator=generator)
        for name, stride in STRIDES.items()
    }
    if truth is None:
        truth = [[[2, 3, 14, 17], [13, 12, 31, 30], [4, 20, 12, 29]], [[1, 1, 26, 27]]]
    instances = [objects(boxes, size) for boxes, size in zip(truth, sizes, strict=True)]
    return ImageList(torch.zeros(len(sizes), 3, side, side), list(sizes)), features, instances


def run(rpn, images, features, truth):
    with EventStorage(0) as storage:
        proposals, losses = rpn.train()(images, features, truth)
        return proposals, losses, {name: value for name, (value, _) in storage.latest().items()}


def test_training_and_evaluation():
    rpn, (images, features, truth) = make(), inputs()
    proposals, losses, logged = run(rpn, images, features, truth)
    assert logged["rpn/num_initial_pos_anchors"] > 0
    assert logged["rpn/num_pos_anchors"] > 0
    sum(losses.values()).backward()
    for name, parameter in rpn.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert not any(value.requires_grad for each in proposals for value in (each.proposal_boxes.tensor,))
    proposals, losses = rpn.eval()(images, features)
    assert losses == {}
    for each, size in zip(proposals, images.image_sizes, strict=True):
        boxes, scores = each.proposal_boxes.tensor, each.objectness_logits
        assert each.image_size == size
        assert 0 < len(each) <= 50
        assert (scores.diff() <= 0).all()
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([size[1], size[0]] * 2)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_the_second_stage_does_not_train_the_boxes_of_the_first():
    rpn = make()
    _, losses, _ = run(rpn, *inputs())
    (losses["loss_rpn_cls"] + losses["loss_rpn_loc"]).backward()
    assert rpn.rpn_head.initial_deltas.weight.grad is None
    assert rpn.rpn_head.initial_conv.weight.grad.abs().sum() > 0  # through the features that both stages share


def test_without_objects_all_parameters_have_a_gradient():
    rpn = make()
    proposals, losses, logged = run(rpn, *inputs(truth=[[], []]))
    sum(losses.values()).backward()
    assert losses["loss_rpn_initial_loc"] == losses["loss_rpn_loc"] == 0
    assert losses["loss_rpn_cls"] > 0
    assert logged["rpn/num_pos_anchors"] == logged["rpn/num_initial_pos_anchors"] == 0
    for name, parameter in rpn.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert len(proposals) == 2


def test_one_image_with_objects_beside_one_without():
    _, losses, logged = run(make(), *inputs(truth=[[[2, 3, 14, 17]], []]))
    assert losses["loss_rpn_initial_loc"] > 0
    assert logged["rpn/num_initial_pos_anchors"] == 0.5 * round(2 * logged["rpn/num_initial_pos_anchors"]) > 0


def test_objects_of_one_pixel():
    rpn = make()
    _, losses, logged = run(rpn, *inputs(truth=[[[5, 5, 6, 6], [31, 31, 32, 32]], [[0, 0, 1, 1]]]))
    assert logged["rpn/num_initial_pos_anchors"] == 1.5
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in rpn.parameters())


def test_five_hundred_objects():
    x, y = torch.meshgrid(torch.arange(25.0), torch.arange(20.0), indexing="xy")
    corners = torch.stack([x.flatten(), y.flatten()], dim=1) * 10
    boxes = torch.cat([corners, corners + 11], dim=1)  # each covers a little of its neighbours
    rpn = make(spread=0, post_nms_topk=(700, 700))
    proposals, losses, logged = run(rpn, *inputs(side=256, sizes=((256, 256),), truth=[boxes]))
    assert logged["rpn/num_initial_pos_anchors"] >= 500
    assert logged["rpn/num_pos_anchors"] == logged["rpn/num_neg_anchors"] == 128
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert len(proposals[0]) <= 700


def test_an_object_that_no_anchor_meets_has_no_positive_anchor():
    rpn = make(spread=0)
    torch.nn.init.constant_(rpn.rpn_head.initial_deltas.bias, -20.0)  # all anchors small, and up to the left
    _, losses, logged = run(rpn, *inputs(sizes=((32, 32),), truth=[[[27, 27, 32, 32], [1, 1, 2, 2]]]))
    assert logged["rpn/num_pos_anchors"] == 0
    assert logged["rpn/num_neg_anchors"] == 8 * 8 + 4 * 4
    assert losses["loss_rpn_loc"] == 0


def test_predictions_that_are_not_finite():
    rpn, (images, features, truth) = make(), inputs()
    features["p2"][1, 0, 3, 3] = torch.nan
    with pytest.raises(FloatingPointError, match="diverged"):
        run(rpn, images, features, truth)
    proposals, _ = rpn.eval()(images, features)
    assert all(torch.isfinite(each.proposal_boxes.tensor).all() for each in proposals)
    torch.nn.init.constant_(rpn.rpn_head.initial_deltas.bias, torch.nan)
    assert [len(each) for each in rpn(images, features)[0]] == [0, 0]


def test_it_learns_and_the_second_stage_refines():
    rpn = make(channels=16, spread=0)
    images, features, truth = inputs(channels=16)
    optimizer = torch.optim.Adam(rpn.parameters(), lr=3e-3)
    history = []
    for _ in range(150):
        _, losses, _ = run(rpn, images, features, truth)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    for name in LOSSES:
        assert history[-1][name] < 0.4 * history[0][name], name
    proposals, _ = rpn.eval()(images, features)
    for each, objects_of in zip(proposals, truth, strict=True):
        found = pairwise_iou(objects_of.gt_boxes, each.proposal_boxes[: len(objects_of) + 2]).amax(1)
        assert (found > 0.85).all(), found


@pytest.mark.parametrize(("weight", "factors"), [(2.0, (2, 2, 2)), ({"loss_rpn_loc": 1.0}, (7, 0.7, 1))])
def test_loss_weights(weight, factors):
    torch.manual_seed(0)
    _, plain, _ = run(make(loss_weight=1.0), *inputs())
    _, losses, _ = run(make(loss_weight=weight), *inputs())
    for name, factor in zip(("loss_rpn_initial_loc", "loss_rpn_cls", "loss_rpn_loc"), factors, strict=True):
        torch.testing.assert_close(losses[name], plain[name] * factor)


def test_the_loss_of_generalised_iou_is_larger():
    losses = {kind: run(make(box_reg_loss_type=kind), *inputs())[1] for kind in ("iou", "giou")}
    assert losses["giou"]["loss_rpn_initial_loc"] > losses["iou"]["loss_rpn_initial_loc"]
    assert losses["giou"]["loss_rpn_loc"] > losses["iou"]["loss_rpn_loc"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box_reg_loss_type": "smooth_l1"}, "box_reg_loss_type"),
        ({"center_ratio": 0.6}, "center_ratio and ignore_ratio"),
        ({"loss_weight": {"loss_rpn_reg": 1.0}}, "loss_weight names loss_rpn_reg"),
        (
            {"anchor_generator": DefaultAnchorGenerator(sizes=[[8], [9]], aspect_ratios=[0.5, 1], strides=[4, 8])},
            "one anchor a place",
        ),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_training_needs_ground_truth():
    images, features, _ = inputs()
    with pytest.raises(ValueError, match="gt_instances"):
        make().train()(images, features)


@pytest.mark.parametrize("part", ["initial", "forward"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_stages_compile_as_one_graph(part):
    head = make().rpn_head
    _, features, _ = inputs()
    arguments = (features["p2"],)
    if part == "forward":
        anchors = square_anchors([1], 3.0)([features["p2"]])[0].tensor
        arguments += (anchors.repeat(2, 1, 1),)
    function = getattr(head, part)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for mine, expected in zip(compiled(*arguments), function(*arguments), strict=True):
        torch.testing.assert_close(mine, expected)


def test_names_of_weights():
    shapes = {name: tuple(value.shape) for name, value in make().rpn_head.state_dict().items()}
    assert shapes == {
        "initial_conv.weight": (6, 6, 3, 3),
        "initial_conv.bias": (6,),
        "initial_deltas.weight": (4, 6, 1, 1),
        "initial_deltas.bias": (4,),
        "conv.weight": (6, 6, 3, 3),
        "objectness_logits.weight": (1, 6, 1, 1),
        "objectness_logits.bias": (1,),
        "anchor_deltas.weight": (4, 6, 1, 1),
        "anchor_deltas.bias": (4,),
    }


def test_builds_from_a_yacs_config_by_name():
    cfg = get_cfg()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "CascadeRPN"
    cfg.MODEL.RPN.IN_FEATURES = ["p3", "p4"]
    cfg.MODEL.CASCADE_RPN = CfgNode(
        {
            "ANCHOR_SCALE": 5.0,
            "INITIAL_BBOX_REG_WEIGHTS": INITIAL_WEIGHTS,
            "BBOX_REG_WEIGHTS": FINAL_WEIGHTS,
            "CENTER_RATIO": 0.3,
            "IGNORE_RATIO": 0.6,
            "MIN_POSITIVE_IOU": 0.2,
            "BBOX_REG_LOSS_TYPE": "giou",
            "INITIAL_BBOX_REG_LOSS_WEIGHT": 3.0,
            "CLS_LOSS_WEIGHT": 2.0,
            "BBOX_REG_LOSS_WEIGHT": 4.0,
        }
    )
    shapes = {"p3": ShapeSpec(channels=6, stride=8), "p4": ShapeSpec(channels=6, stride=16)}
    rpn = build_proposal_generator(cfg, shapes)
    assert type(rpn) is CascadeRPN
    assert isinstance(rpn, RPN)
    assert [tuple(each[0].tolist()) for each in rpn.anchor_generator.cell_anchors] == [
        (-20, -20, 20, 20),
        (-40, -40, 40, 40),
    ]
    assert (rpn.center_ratio, rpn.ignore_ratio, rpn.min_positive_iou) == (0.3, 0.6, 0.2)
    assert rpn.box_reg_loss_type == "giou"
    assert list(rpn.loss_weight.values()) == [3.0, 2.0, 4.0]
    assert rpn.initial_box2box_transform.weights == INITIAL_WEIGHTS
    shapes["p4"] = ShapeSpec(channels=7, stride=16)
    with pytest.raises(ValueError, match="IN_FEATURES"):
        build_proposal_generator(cfg, shapes)


@pytest.fixture(scope="module")
def model():
    cfg = get_config("nuclei/variants/cascade_rpn")
    skip_pretrained(cfg)
    torch.manual_seed(0)
    return instantiate(cfg.model)


def test_the_variant_trains_as_a_whole(model):
    boxes = torch.tensor([[5.0, 5, 25, 25], [30, 30, 60, 62]])
    truth = objects(boxes, (64, 64))
    model.train().roi_heads.mask_on = False
    with EventStorage(0):
        losses = model([{"image": torch.rand(3, 64, 64) * 255, "instances": truth}])
    model.roi_heads.mask_on = True
    assert set(losses) == LOSSES | {"loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    assert all(each.grad is not None for each in model.proposal_generator.parameters())


def test_the_variant_optimised_for_inference_is_the_same(model):
    image = [{"image": torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255}]
    model.eval().roi_heads.box_predictor.test_score_thresh = 0.0
    with torch.no_grad():
        (before,) = model(image)
        optimize_for_inference(model)
        (after,) = model(image)
    before, after = before["instances"], after["instances"]
    assert len(before) == len(after) > 0
    torch.testing.assert_close(after.scores, before.scores, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.pred_boxes.tensor, before.pred_boxes.tensor, atol=1e-2, rtol=1e-4)
