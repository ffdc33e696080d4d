"""DenseROIHeads is StandardROIHeads where its options are off, and does what each option says."""

import resource
import subprocess
import sys

import pytest
import torch
from detectron2.config import CfgNode, LazyCall, get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
    build_roi_heads,
)
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from maskrcnn_plus.inference.optimize import optimize_for_inference
from maskrcnn_plus.mask_heads import mask_targets
from maskrcnn_plus.masks.label_masks import LabelMapMasks
from maskrcnn_plus.roi import FastRCNNOutput, PyramidROIAlign
from maskrcnn_plus.roi.dense_heads import DenseROIHeads

KINDS = ["labels", "bitmaps", "polygons"]
KEYS = dict(MASK_BATCH_SIZE_PER_IMAGE=5, SOFT_MASK_TARGETS=True, SOFT_NMS_METHOD="linear", SOFT_NMS_SIGMA=0.3)


def heads(cls=DenseROIHeads, channels=4, train=True, **options):
    torch.manual_seed(0)
    parts = dict(
        num_classes=2,
        batch_size_per_image=64,
        positive_fraction=0.5,
        proposal_matcher=Matcher([0.5], [0, 1], allow_low_quality_matches=False),
        box_in_features=["p2", "p3"],
        box_pooler=PyramidROIAlign(7, (1 / 4, 1 / 8), 0),
        box_head=FastRCNNConvFCHead(ShapeSpec(channels=channels, height=7, width=7), conv_dims=[], fc_dims=[16]),
        box_predictor=FastRCNNOutputLayers(
            ShapeSpec(channels=16), box2box_transform=Box2BoxTransform((10, 10, 5, 5)), num_classes=2
        ),
        mask_in_features=["p2", "p3"],
        mask_pooler=PyramidROIAlign(14, (1 / 4, 1 / 8), 0),
        mask_head=MaskRCNNConvUpsampleHead(
            ShapeSpec(channels=channels, height=14, width=14), num_classes=2, conv_dims=[8, 8]
        ),
    )
    return cls(**{**parts, **options}).train(train)


def image_of(objects, kind="labels", side=96, seed=0, others=20):
    """Ground truth of `objects` squares on a grid, two proposals around each and `others` elsewhere."""
    random = torch.Generator().manual_seed(seed)
    columns = max(int(objects**0.5 + 0.999), 1)
    cell = side // columns
    places = torch.arange(objects)
    low = torch.stack([places % columns, places // columns], dim=1) * cell
    boxes = torch.cat([low, low + max(cell - 2, 1)], dim=1)
    label_map = torch.zeros(side, side, dtype=torch.int32)
    for label, (x0, y0, x1, y1) in enumerate(boxes.tolist(), start=1):
        label_map[y0:y1, x0:x1] = label
    masks = LabelMapMasks(label_map, torch.arange(1, objects + 1))
    if kind == "bitmaps":
        masks = masks.to_bitmasks()
    elif kind == "polygons":
        masks = PolygonMasks([[torch.tensor([x0, y0, x1, y0, x1, y1, x0, y1])] for x0, y0, x1, y1 in boxes.tolist()])
    boxes = boxes.float()
    classes = torch.randint(0, 2, (objects,), generator=random)
    targets = Instances((side, side), gt_boxes=Boxes(boxes), gt_classes=classes, gt_masks=masks)
    near = boxes.repeat(2, 1)
    near = near + torch.randn(near.shape, generator=random) * 0.05 * cell
    corners = torch.rand(others, 2, generator=random) * (side - 20)
    far = torch.cat([corners, corners + 4 + torch.rand(others, 2, generator=random) * 16], dim=1)
    found = Boxes(torch.cat([near, far]))
    found.clip((side, side))
    logits = torch.randn(len(found), generator=random)
    return targets, Instances((side, side), proposal_boxes=found, objectness_logits=logits)


def features_of(images, side=96, channels=4):
    random = torch.Generator().manual_seed(7)
    return {
        name: torch.randn(images, channels, side // stride, side // stride, generator=random)
        for name, stride in (("p2", 4), ("p3", 8))
    }


def step(module, batch, seed=3):
    """Losses of a training step after its backward pass, and what was logged."""
    torch.manual_seed(seed)
    module.zero_grad()
    with EventStorage() as storage:
        targets, proposals = [list(each) for each in zip(*batch, strict=True)]
        side = targets[0].image_size[0]
        _, losses = module(None, features_of(len(batch), side), proposals, targets)
        sum(losses.values()).backward()
        logged = {name: value for name, (value, _) in storage.latest().items()}
    return {name: loss.detach() for name, loss in losses.items()}, logged


@pytest.fixture
def seen(monkeypatch):
    """Instances that the mask head was given, one list a call."""
    calls = []
    forward = MaskRCNNConvUpsampleHead.forward
    monkeypatch.setattr(
        MaskRCNNConvUpsampleHead,
        "forward",
        lambda self, x, instances: (calls.append(instances), forward(self, x, instances))[1],
    )
    return calls


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("train_on_pred_boxes", [False, True])
def test_defaults_are_detectron2s_bit_for_bit(kind, train_on_pred_boxes):
    batch = [image_of(9, kind, seed=1), image_of(30, kind, seed=2), image_of(0, kind, seed=3)]
    ours, theirs = (heads(cls, train_on_pred_boxes=train_on_pred_boxes) for cls in (DenseROIHeads, StandardROIHeads))
    losses, logged = step(ours, batch)
    expected, expected_logged = step(theirs, batch)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask"}
    assert all(torch.equal(losses[name], expected[name]) for name in expected)
    assert logged == expected_logged
    assert logged["roi_head/num_fg_samples"] > 10
    for (name, a), (other, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a.grad, b.grad), name
        assert a.grad.abs().sum() > 0, name


def test_detections_are_detectron2s():
    _, proposals = image_of(12)
    results = [
        heads(cls, train=False)(None, features_of(1), [proposals])[0][0] for cls in (DenseROIHeads, StandardROIHeads)
    ]
    ours, theirs = results
    assert len(ours) == len(theirs) > 5
    for name, value in theirs.get_fields().items():
        value, mine = (getattr(each, "tensor", each) for each in (value, ours.get(name)))
        assert torch.equal(mine, value), name


def test_names_of_the_weights():
    assert sorted(heads().state_dict()) == sorted(
        f"{layer}.{kind}"
        for layer in (
            "box_head.fc1",
            "box_predictor.cls_score",
            "box_predictor.bbox_pred",
            "mask_head.mask_fcn1",
            "mask_head.deconv",
            "mask_head.predictor",
        )
        for kind in ("weight", "bias")
    )


@pytest.mark.parametrize("limit", [1, 4, 1000])
def test_limit_of_the_mask_head(limit, seen):
    batch = [image_of(25, seed=1), image_of(2, seed=2)]
    all_losses, logged = step(heads(), batch)
    everything = seen.pop()
    losses, limited_logged = step(heads(mask_batch_size_per_image=limit), batch)
    chosen = seen.pop()
    assert [len(each) for each in chosen] == [min(len(each), limit) for each in everything]
    assert len(everything[0]) > 20 > len(everything[1]) > 4
    for some, every in zip(chosen, everything, strict=True):
        rows = {tuple(row) for row in every.proposal_boxes.tensor.tolist()}
        assert {tuple(row) for row in some.proposal_boxes.tensor.tolist()} <= rows
        assert (some.gt_classes < 2).all()
    # The box branch comes first and learns from all.
    assert torch.equal(losses["loss_cls"], all_losses["loss_cls"])
    assert torch.equal(losses["loss_box_reg"], all_losses["loss_box_reg"])
    assert limited_logged["roi_head/num_fg_samples"] == logged["roi_head/num_fg_samples"]
    assert torch.equal(losses["loss_mask"], all_losses["loss_mask"]) == (limit == 1000)


def test_limited_rois_are_drawn_by_the_seed(seen):
    limited = heads(mask_batch_size_per_image=6)
    _, proposals = image_of(25, seed=1)
    proposals.gt_classes = (torch.arange(len(proposals)) % 3).where(torch.arange(len(proposals)) < 50, 2)
    targets, _ = image_of(25, seed=1)
    proposals.gt_masks = targets.gt_masks[torch.arange(len(proposals)) % 25]
    drawn = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        with EventStorage():
            limited._forward_mask(features_of(1), [proposals])
        drawn.append(seen.pop()[0].proposal_boxes.tensor)
    assert len(drawn[0]) == 6
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("kind", KINDS)
def test_soft_targets_reach_the_mask_head(kind, seen):
    batch = [image_of(9, kind, seed=1), image_of(16, kind, seed=2)]
    hard_heads, module = heads(), heads(soft_mask_targets=True)
    for each in (hard_heads, module):  # with the first logits, next to 0, the loss hardly depends on the targets
        each.mask_head.predictor.weight.data *= 1e5
    hard, logged = step(hard_heads, batch)
    plain = seen.pop()
    soft, soft_logged = step(module, batch)
    (instances,) = [seen.pop()]
    assert torch.equal(soft["loss_cls"], hard["loss_cls"])
    assert (soft["loss_mask"] - hard["loss_mask"]).abs() > 1e-4
    assert soft_logged["roi_head/num_fg_samples"] == logged["roi_head/num_fg_samples"]
    targets = mask_targets(plain, 28, soft=True)
    assert torch.equal(mask_targets(instances, 28), targets)
    pooled = module.mask_pooler(list(features_of(2).values()), [each.proposal_boxes for each in instances])
    logits = module.mask_head.layers(pooled)
    logits = logits[torch.arange(len(logits)), torch.cat([each.gt_classes for each in instances])]
    assert torch.allclose(soft["loss_mask"], F.binary_cross_entropy_with_logits(logits, targets), rtol=1e-6)
    assert isinstance(batch[0][0].gt_masks, type(image_of(9, kind)[0].gt_masks))  # the caller's stay


@pytest.mark.parametrize("options", [{}, {"mask_batch_size_per_image": 4, "soft_mask_targets": True}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_no_objects_at_all_leaves_the_losses_connected(options, kind):
    module = heads(**options)
    losses, _ = step(module, [image_of(0, kind), image_of(0, kind)])
    assert losses["loss_mask"] == losses["loss_box_reg"] == 0
    assert losses["loss_cls"] > 0
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("kind", ["labels", "bitmaps"])
@pytest.mark.parametrize(("objects", "side"), [(500, 96), (1, 3)], ids=["500 objects", "one pixel"])
def test_many_and_tiny_objects(kind, objects, side):
    module = heads(mask_batch_size_per_image=16, soft_mask_targets=True)
    losses, logged = step(module, [image_of(objects, kind, max(side, 96))] if objects > 1 else [_one_pixel(kind)])
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert logged["roi_head/num_fg_samples"] >= 1
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def _one_pixel(kind):
    targets, proposals = image_of(1)
    label_map = torch.zeros(96, 96, dtype=torch.int32)
    label_map[40, 50] = 1
    targets.gt_masks = LabelMapMasks(label_map, torch.tensor([1]))
    if kind == "bitmaps":
        targets.gt_masks = targets.gt_masks.to_bitmasks()
    targets.gt_boxes = Boxes(torch.tensor([[50.0, 40, 51, 41]]))
    return targets, proposals


def test_images_without_masks_train_boxes_alone():
    module = heads(mask_in_features=None, soft_mask_targets=True, mask_batch_size_per_image=4)
    targets, proposals = image_of(9)
    targets.remove("gt_masks")
    losses, _ = step(module, [(targets, proposals)])
    assert set(losses) == {"loss_cls", "loss_box_reg"}


def grown_rss(cls_name):
    """Kilobytes by which the peak memory of a fresh process grows in a step: 512 RoIs, 300 BitMasks, 2000 x 2000."""
    done = subprocess.run(
        [sys.executable, __file__, cls_name], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


def measure(cls):
    torch.set_num_threads(1)
    module = heads(cls, batch_size_per_image=512, positive_fraction=0.25)
    step(module, [image_of(9, "bitmaps")])
    side = 2000
    targets, proposals = image_of(300, side=side, others=600)
    # 300 bitmaps of which all show the same, so that the ground truth itself takes 4 MB.
    targets.gt_masks = BitMasks((targets.gt_masks.label_map > 0)[None].expand(300, side, side))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, logged = step(module, [(targets, proposals)])
    assert logged["roi_head/num_fg_samples"] == 128
    assert logged["roi_head/num_bg_samples"] == 384
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def test_memory_of_a_step_does_not_hold_a_mask_per_roi():
    """A mask per RoI is 4 MB: 2 GB for all, 0.5 GB for the 128 positive ones, and 2 GB for these as floats."""
    assert grown_rss("DenseROIHeads") < 150_000


@pytest.mark.parametrize("options", [{}, KEYS], ids=["defaults", "set"])
def test_of_a_yacs_config_by_name(options):
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.NAME = "DenseROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    defaults = dict(MASK_BATCH_SIZE_PER_IMAGE=0, SOFT_MASK_TARGETS=False, SOFT_NMS_METHOD="", SOFT_NMS_SIGMA=0.5)
    cfg.MODEL.ROI_HEADS.update(CfgNode({**defaults, **options}))
    module = build_roi_heads(cfg, {f"p{n}": ShapeSpec(channels=4, stride=2**n) for n in (2, 3)})
    assert type(module) is DenseROIHeads
    assert type(module.box_predictor) is FastRCNNOutput
    values = (module.mask_batch_size_per_image, module.soft_mask_targets)
    assert values == ((5, True) if options else (0, False))
    predictor = (module.box_predictor.soft_nms_method, module.box_predictor.soft_nms_sigma)
    assert predictor == (("linear", 0.3) if options else ("", 0.5))
    assert module.box_predictor.cls_score.out_features == 4
    losses, _ = step(module, [image_of(9)])
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_optimised_for_inference_it_finds_the_same():
    module = heads(train=False, channels=8, soft_mask_targets=True)
    _, proposals = image_of(12)
    (plain,), _ = module(None, features_of(1, channels=8), [proposals])
    (fast,), _ = optimize_for_inference(module)(None, features_of(1, channels=8), [proposals])
    assert len(plain) == len(fast) > 5
    assert torch.allclose(fast.pred_boxes.tensor, plain.pred_boxes.tensor, rtol=1e-4)
    assert torch.allclose(fast.scores, plain.scores, rtol=1e-4)
    assert torch.allclose(fast.pred_masks, plain.pred_masks, rtol=1e-4)


def test_of_a_lazy_config_and_with_a_wrong_limit():
    call = LazyCall(heads)(mask_batch_size_per_image=9, soft_mask_targets=True)
    assert instantiate(call).mask_batch_size_per_image == 9
    with pytest.raises(ValueError, match="mask_batch_size_per_image must be at least 1"):
        heads(mask_batch_size_per_image=-1)


if __name__ == "__main__":
    print(measure({"DenseROIHeads": DenseROIHeads, "StandardROIHeads": StandardROIHeads}[sys.argv[1]]))
