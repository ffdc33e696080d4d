"""The IoU-aware RPN against a loop over the anchors, BatchedRPN where quality has no say, and its edge cases."""

import copy
import math

import pytest
import torch
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torchvision.ops import box_iou

from maskrcnn_plus import config
from maskrcnn_plus.config import detectron2_config
from maskrcnn_plus.inference import optimize_for_inference
from maskrcnn_plus.rpn import BatchedRPN
from maskrcnn_plus.rpn.iou_aware import IoUAwareRPN, IoUAwareRPNHead, centerness, geometric_mean_logits

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}


def build(cls=IoUAwareRPN, head=IoUAwareRPNHead, scale=30.0, **options):
    """An RPN whose convolutions are those of every other one built here, as far as it has them."""
    cfg = detectron2_config("common/models/mask_rcnn_fpn.py").model.proposal_generator
    cfg.head.in_channels, cfg.head._target_, cfg._target_ = 8, head, cls
    cfg.pre_nms_topk, cfg.post_nms_topk = (200, 100), (50, 30)
    cfg.update(options)
    torch.manual_seed(0)
    rpn = instantiate(cfg)
    for parameter in rpn.parameters():
        parameter.data.mul_(scale)  # proposals that differ from the anchors
    return rpn


def inputs(boxes=((4, 6, 50, 60), (30, 20, 90, 100)), images=2, size=128):
    generator = torch.Generator().manual_seed(1)
    features = {n: torch.randn(images, 8, size // s, size // s, generator=generator) for n, s in STRIDES.items()}
    sizes = [(size, size - 8 * i) for i in range(images)]
    truth = []
    for image, image_size in enumerate(sizes):
        each = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) + image)
        truth.append(Instances(image_size, gt_boxes=each, gt_classes=torch.zeros(len(each), dtype=torch.int64)))
    return ImageList(torch.zeros(images, 3, size, size), sizes), features, truth


def run(rpn, batch, training=True, seed=0):
    images, features, truth = batch
    rpn.train(training)
    torch.manual_seed(seed)
    with EventStorage(0) as storage:
        proposals, losses = rpn(images, features, truth if training else None)
    return proposals, losses, storage


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def naive_quality_loss(rpn, batch):
    """Loop over every anchor in float64, from the outputs of the head, without sampling."""
    _, features, truth = batch
    maps = [features[name] for name in rpn.in_features]
    _, deltas, quality = rpn.rpn_head(maps)
    total, count = 0.0, 0
    for image, instances in enumerate(truth):
        for level, boxes in enumerate(rpn.anchor_generator(maps)):
            cells = boxes.tensor.double().reshape(*maps[level].shape[-2:], -1, 4)  # [H, W, A, 4]
            ious = box_iou(cells.reshape(-1, 4), instances.gt_boxes.tensor.double()).reshape(*cells.shape[:3], -1)
            best, which = ious.max(dim=3)
            for y, x, a in (best >= rpn.quality_iou_threshold).nonzero().tolist():
                anchor, target = cells[y, x, a], instances.gt_boxes.tensor[which[y, x, a]].double()
                if rpn.quality == "iou":
                    dx, dy, dw, dh = deltas[level][image, 4 * a : 4 * a + 4, y, x].double().tolist()
                    x0, y0, x1, y1 = anchor.tolist()
                    w, h = x1 - x0, y1 - y0
                    cx, cy = x0 + w / 2 + dx * w, y0 + h / 2 + dy * h
                    w, h = w * math.exp(min(dw, math.log(62.5))), h * math.exp(min(dh, math.log(62.5)))
                    decoded = torch.tensor([[cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]]).double()
                    q = box_iou(decoded, target[None]).item()
                else:
                    q = centerness(anchor[None], target[None]).item()
                p = sigmoid(quality[level][image, a, y, x].item())
                total += (
                    abs(p - q)
                    if rpn.quality_loss_type == "smooth_l1"
                    else -(q * math.log(p) + (1 - q) * math.log(1 - p))
                )
                count += 1
    return total / (rpn.quality_batch_size_per_image * len(truth)), count / len(truth)


@pytest.mark.parametrize("quality", ["iou", "centerness"])
@pytest.mark.parametrize("kind", ["bce", "smooth_l1"])
def test_quality_loss_equals_a_loop_over_the_anchors(quality, kind):
    rpn = build(scale=4, quality=quality, quality_loss_type=kind, quality_batch_size_per_image=5000)
    rpn.loss_weight["loss_rpn_quality"] = 3.0
    _, losses, storage = run(rpn, inputs())
    expected, count = naive_quality_loss(rpn, inputs())
    assert count > 50
    assert storage.latest()["rpn/num_quality_anchors"][0] == count
    assert losses["loss_rpn_quality"].item() == pytest.approx(3 * expected, rel=1e-5)


def test_the_sample_is_random_of_limited_size_and_well_covered():
    rpn = build(quality_batch_size_per_image=20)
    _, features, truth = inputs()
    maps = [features[name] for name in rpn.in_features]
    anchors = rpn.anchor_generator(maps)
    _, gt_boxes = rpn.label_and_sample_anchors(anchors, truth)
    flat = Boxes.cat(anchors)
    deltas = [torch.zeros(2, len(each), 4) for each in anchors]
    samples = []
    for _ in range(2):
        (of_image, places), targets = rpn.sample_quality(flat, deltas, gt_boxes)
        assert of_image.bincount().tolist() == [20, 20]
        for image in range(2):
            chosen = places[of_image == image]
            assert len(chosen.unique()) == 20
            best = box_iou(flat.tensor[chosen], truth[image].gt_boxes.tensor).max(dim=1).values
            assert best.min() >= 0.3
            # Deltas of 0 decode to the anchors.
            torch.testing.assert_close(targets[of_image == image], best)
        assert not targets.requires_grad
        samples.append(places)
    assert not torch.equal(*samples)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("score", "bias"), [("objectness", None), ("product", -3.0), ("product", 0.0), ("product", 8.0)]
)
def test_equals_batched_rpn_where_quality_has_no_say(training, score, bias):
    """Quality that is not asked, or is the same everywhere."""
    plain, rpn = build(BatchedRPN, StandardRPNHead), build(score=score)
    if bias is not None:
        rpn.rpn_head.quality_logits.weight.data.zero_()
        rpn.rpn_head.quality_logits.bias.data.fill_(bias)
    missing = rpn.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == ["rpn_head.quality_logits.weight", "rpn_head.quality_logits.bias"]
    (ours, our_losses, _), (theirs, losses, _) = run(rpn, inputs(), training), run(plain, inputs(), training)
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) == len(b) == (50 if training else 30)
        assert a.image_size == b.image_size
        assert torch.equal(a.proposal_boxes.tensor, b.proposal_boxes.tensor)
        if bias is None:
            assert torch.equal(a.objectness_logits, b.objectness_logits)
        else:
            expected = geometric_mean_logits(b.objectness_logits, torch.tensor(bias))
            torch.testing.assert_close(a.objectness_logits, expected)
    assert {name: value.item() for name, value in our_losses.items() if name != "loss_rpn_quality"} == {
        name: value.item() for name, value in losses.items()
    }
    assert ("loss_rpn_quality" in our_losses) == training


def test_the_score_ranks_the_proposals():
    """Without suppression and limits all boxes come out, in the order of the score that was asked for."""
    images, features, truth = inputs(images=1)
    maps, tops = list(features.values()), []
    for score in ("objectness", "quality", "product"):
        rpn = build(scale=4, score=score, nms_thresh=1.0, pre_nms_topk=(9999, 9999), post_nms_topk=(9999, 9999))
        (proposals,), _, _ = run(rpn, (images, features, truth), training=False)
        objectness, _, quality = rpn.rpn_head(maps)
        objectness, quality = (
            torch.cat([each[0].permute(1, 2, 0).flatten() for each in part]).double() for part in (objectness, quality)
        )
        if score == "product":
            wanted = torch.logit((objectness.sigmoid() * quality.sigmoid()).sqrt())
        else:
            wanted = objectness if score == "objectness" else quality
        torch.testing.assert_close(proposals.objectness_logits, wanted.sort(descending=True).values.float())
        tops.append(proposals.proposal_boxes.tensor[:20])
    assert not any(torch.equal(tops[i], tops[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_names_of_weights_are_stable():
    assert list(build().state_dict()) == [
        f"rpn_head.{layer}.{kind}"
        for layer in ("conv", "objectness_logits", "anchor_deltas", "quality_logits")
        for kind in ("weight", "bias")
    ]


@pytest.mark.parametrize("score", ["product", "quality"])
@pytest.mark.parametrize("boxes", [((4, 6, 50, 60), (30, 20, 90, 100)), (), ((5, 5, 6, 6),)])
def test_losses_reach_every_parameter(score, boxes):
    """With objects, without, and with one of a single pixel, which no anchor covers well enough for quality."""
    rpn = build(score=score)
    rpn.loss_weight["loss_rpn_cls"] = 0.0 if score == "quality" else 1.0
    proposals, losses, storage = run(rpn, inputs(boxes))
    assert all(each.proposal_boxes.tensor.isfinite().all() for each in proposals)
    sum(losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in rpn.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    learns_quality = len(boxes) == 2
    assert gradients["rpn_head.quality_logits.weight"].any() == learns_quality
    assert (losses["loss_rpn_quality"] > 0) == learns_quality
    assert (storage.latest()["rpn/num_quality_anchors"][0] > 0) == learns_quality
    assert gradients["rpn_head.objectness_logits.weight"].any() == (score == "product")


def test_quality_target_gives_no_gradient_to_the_boxes():
    rpn = build()
    _, losses, _ = run(rpn, inputs())
    deltas = rpn.rpn_head.anchor_deltas.weight
    assert torch.autograd.grad(losses["loss_rpn_quality"], deltas, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(losses["loss_rpn_loc"], deltas)[0].any()


def test_five_hundred_objects():
    generator = torch.Generator().manual_seed(2)
    corner = torch.rand(500, 2, generator=generator) * 100
    boxes = torch.cat([corner, corner + 8 + torch.rand(500, 2, generator=generator) * 20], 1)
    proposals, losses, storage = run(build(), inputs(boxes.tolist()))
    assert len(proposals[0]) == 50
    assert 0 < losses["loss_rpn_quality"].item() < math.inf
    assert 0 < storage.latest()["rpn/num_quality_anchors"][0] <= 256


@pytest.mark.parametrize("score", ["product", "quality"])
def test_predictions_that_are_not_finite(score):
    rpn = build(score=score)
    rpn.rpn_head.quality_logits.bias.data[0] = float("inf")
    with pytest.raises(FloatingPointError, match="diverged"):
        run(rpn, inputs())
    for each in run(rpn, inputs(), training=False)[0]:
        assert len(each) > 0
        assert each.proposal_boxes.tensor.isfinite().all()
        assert each.objectness_logits.isfinite().all()


def test_a_weight_for_all_losses_and_weights_by_name():
    _, once, _ = run(build(), inputs())
    _, twice, _ = run(build(loss_weight=2.0), inputs())
    assert {name: value.item() for name, value in twice.items()} == {n: 2 * v.item() for n, v in once.items()}
    _, named, _ = run(build(loss_weight={"loss_rpn_quality": 0.5}), inputs())
    assert named["loss_rpn_quality"] == once["loss_rpn_quality"] / 2
    assert named["loss_rpn_cls"] == once["loss_rpn_cls"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("quality", "giou"),
        ("score", "sum"),
        ("quality_loss_type", "l2"),
        ("quality_iou_threshold", 0.0),
        ("quality_smooth_l1_beta", -1.0),
        ("quality_batch_size_per_image", 0),
    ],
)
def test_bad_options(option, value):
    with pytest.raises(ValueError, match=f"^{option} must be.*{value}"):
        build(**{option: value})


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"StandardRPNHead predicts no quality.*IoUAwareRPNHead"):
        run(build(head=StandardRPNHead), inputs())
    images, features, _ = inputs()
    with pytest.raises(ValueError, match="needs gt_instances"):
        build().train()(images, features)


def test_under_autocast_and_channels_last():
    rpn, (images, features, truth) = build(scale=5), inputs()
    expected = run(rpn, (images, features, truth), training=False)[0]
    last = {name: each.contiguous(memory_format=torch.channels_last) for name, each in features.items()}
    for a, b in zip(run(rpn, (images, last, truth), training=False)[0], expected, strict=True):
        torch.testing.assert_close(a.proposal_boxes.tensor, b.proposal_boxes.tensor, atol=1e-3, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        _, losses, _ = run(rpn, (images, features, truth))
    assert losses["loss_rpn_quality"].dtype == torch.float32
    _, exact, _ = run(rpn, (images, features, truth))
    assert losses["loss_rpn_quality"].item() == pytest.approx(exact["loss_rpn_quality"].item(), rel=0.05)


def test_the_head_compiles_in_one_graph():
    head = build().rpn_head
    features = list(inputs()[1].values())
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(features), head(features), strict=True):
        torch.testing.assert_close(a, b)
    sum(each.sum() for part in compiled(features) for each in part).backward()
    assert all(parameter.grad.any() for parameter in head.parameters())


def test_optimised_for_inference():
    rpn = build(scale=5).eval()
    faster = optimize_for_inference(copy.deepcopy(rpn))
    maps = list(inputs()[1].values())
    for a, b in zip(faster.rpn_head(maps), rpn.rpn_head(maps), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert [len(each) for each in run(faster, inputs(), training=False)[0]] == [30, 30]


def yacs_config():
    cfg = get_cfg()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "IoUAwareRPN"
    cfg.MODEL.RPN.HEAD_NAME = "IoUAwareRPNHead"
    cfg.MODEL.IOU_AWARE_RPN = CfgNode(
        {
            "QUALITY": "centerness",
            "SCORE": "quality",
            "LOSS_TYPE": "smooth_l1",
            "SMOOTH_L1_BETA": 0.1,
            "IOU_THRESHOLD": 0.4,
            "BATCH_SIZE_PER_IMAGE": 64,
            "LOSS_WEIGHT": 3.0,
        }
    )
    cfg.MODEL.RPN.LOSS_WEIGHT = 2.0
    return cfg


def test_builds_from_a_yacs_config_by_name():
    rpn = build_proposal_generator(yacs_config(), {"res4": ShapeSpec(channels=16, stride=16)})
    assert type(rpn) is IoUAwareRPN
    assert type(rpn.rpn_head) is IoUAwareRPNHead
    assert rpn.rpn_head.quality_logits.weight.shape == (15, 16, 1, 1)  # 5 sizes x 3 aspect ratios
    assert (rpn.quality, rpn.score, rpn.quality_loss_type) == ("centerness", "quality", "smooth_l1")
    assert (rpn.quality_smooth_l1_beta, rpn.quality_iou_threshold, rpn.quality_batch_size_per_image) == (0.1, 0.4, 64)
    assert rpn.loss_weight == {"loss_rpn_cls": 2.0, "loss_rpn_loc": 2.0, "loss_rpn_quality": 6.0}


def test_the_proposal_generator_of_the_variant():
    cfg = config.get_config("nuclei/variants/iou_aware").model
    torch.manual_seed(0)
    rpn = instantiate(cfg.proposal_generator)
    assert type(rpn) is IoUAwareRPN
    assert type(rpn.rpn_head) is IoUAwareRPNHead
    images, _, truth = inputs(size=64)
    features = {name: torch.randn(2, cfg.backbone.out_channels, 64 // s, 64 // s) for name, s in STRIDES.items()}
    proposals, losses, _ = run(rpn, (images, features, truth))
    assert list(losses) == ["loss_rpn_cls", "loss_rpn_loc", "loss_rpn_quality"]
    assert all(value > 0 for value in losses.values())
    assert all(0 < len(each) <= 500 for each in proposals)
