"""Mask scoring: its losses and scores are those of the paper written out."""

import copy

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead, mask_rcnn_inference
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from scipy import ndimage
from torch.nn import functional as F

from maskrcnn_plus.mask_heads.boundary import BoundaryMaskHead
from maskrcnn_plus.mask_heads.mask_iou import (
    MaskIoUHead,
    MaskScoringHead,
    mask_iou_loss,
)
from maskrcnn_plus.masks.label_masks import LabelMapMasks

HEIGHT, WIDTH = 120, 150
CHANNELS, SIDE, NUM_CLASSES = 8, 14, 3
SHAPE = ShapeSpec(channels=CHANNELS, height=SIDE, width=SIDE)


def stock_head(classes=NUM_CLASSES, norm=""):
    return MaskRCNNConvUpsampleHead(SHAPE, num_classes=classes, conv_dims=[CHANNELS] * 3, conv_norm=norm)


def boundary_head(classes=NUM_CLASSES, norm=""):
    return BoundaryMaskHead(SHAPE, num_classes=classes, conv_dims=[CHANNELS] * 3, conv_norm=norm)


def iou_head(classes=NUM_CLASSES, norm="", shape=SHAPE):
    return MaskIoUHead(
        shape, num_classes=classes, conv_dims=[CHANNELS] * 4, fc_dims=[16, 12], conv_norm=norm and small_group_norm
    )


def small_group_norm(channels):
    return torch.nn.GroupNorm(4, channels)


def scoring_head(make=stock_head, classes=NUM_CLASSES, iou_classes=NUM_CLASSES, norm="", **options):
    """With weights large enough for masks and IoUs of all kinds."""
    torch.manual_seed(0)
    wrapped = make(classes, norm and small_group_norm)
    head = MaskScoringHead(mask_head=wrapped, mask_iou_head=iou_head(iou_classes, norm), **options)
    torch.nn.init.normal_(wrapped.predictor.weight, std=1.0)
    torch.nn.init.normal_(head.mask_iou_head.fc_mask_iou.weight, std=0.3)
    torch.nn.init.constant_(head.mask_iou_head.fc_mask_iou.bias, 0.5)
    return head


def blobs(seed=0, sigma=6):
    """A label image of objects of irregular outline, and the ids of those with more than one pixel."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((HEIGHT, WIDTH)), sigma)
    labels, count = ndimage.label(noise > 0.3 * noise.std())
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    ids = torch.from_numpy(1 + np.flatnonzero(sizes > 1)).int()
    return LabelMapMasks(torch.from_numpy(labels.astype(np.int32)), ids)


def rois(seed=0, count=None):
    masks = blobs(seed)
    if count is not None:
        masks = masks[torch.arange(count) % len(masks)]
    random = torch.Generator().manual_seed(seed)
    instances = Instances((HEIGHT, WIDTH))
    boxes = masks.get_bounding_boxes().tensor
    shift = 0.4 * (torch.rand(boxes.shape, generator=random) - 0.5) * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    instances.proposal_boxes = Boxes(boxes + shift)
    instances.gt_classes = torch.randint(NUM_CLASSES, (len(masks),), generator=random)
    instances.gt_masks = masks
    return instances


def no_rois():
    """What the RoI heads give of an image without objects: no gt_masks."""
    empty = torch.zeros(0, dtype=torch.int64)
    return Instances((HEIGHT, WIDTH), proposal_boxes=Boxes(torch.zeros(0, 4)), gt_classes=empty)


def detections(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=random) * 80
    boxes = torch.cat([corners, corners + 5 + 30 * torch.rand(count, 2, generator=random)], dim=1)
    classes = torch.randint(NUM_CLASSES, (count,), generator=random)
    scores = torch.rand(count, generator=random).sort(descending=True).values
    return Instances((HEIGHT, WIDTH), pred_boxes=Boxes(boxes), pred_classes=classes, scores=scores)


def features(count, seed=0, dtype=torch.float32):
    return torch.randn(count, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def written_out(head, x, probs, last_stride=2):
    """The MaskIoU head's formula on its own tensors."""
    state = head.state_dict()
    side = x.shape[2]
    ratio = probs.shape[2] // side
    x = torch.cat([x, probs.reshape(len(x), 1, side, ratio, side, ratio).amax((3, 5))], dim=1)
    for k in range(4):
        x = F.conv2d(x, state[f"convs.{k}.weight"], state.get(f"convs.{k}.bias"), last_stride if k == 3 else 1, 1)
        if f"convs.{k}.norm.weight" in state:
            x = F.group_norm(x, 4, state[f"convs.{k}.norm.weight"], state[f"convs.{k}.norm.bias"])
        x = x.relu()
    x = x.reshape(len(x), -1)
    for k in range(2):
        x = (x @ state[f"fcs.{k}.weight"].T + state[f"fcs.{k}.bias"]).relu()
    return x @ state["fc_mask_iou.weight"].T + state["fc_mask_iou.bias"]


KINDS = [(stock_head, 3, 3), (stock_head, 1, 1), (stock_head, 1, 3), (boundary_head, 3, 1), (boundary_head, 3, 3)]


class TestMaskIoUHead:
    @pytest.mark.parametrize("norm", ["", "GN"])
    @pytest.mark.parametrize(("side", "size"), [(14, 28), (14, 14), (14, 56), (7, 28), (5, 15)])
    def test_against_the_formula(self, side, size, norm):
        torch.manual_seed(0)
        head = iou_head(norm=norm, shape=ShapeSpec(channels=CHANNELS, height=side, width=side)).double()
        x = torch.randn(4, CHANNELS, side, side, dtype=torch.float64)
        probs = torch.rand(4, 1, size, size, dtype=torch.float64)
        found = head(x, probs)
        assert found.shape == (4, NUM_CLASSES)
        assert found.std() > 1e-4
        assert torch.allclose(found, written_out(head, x, probs), rtol=0, atol=1e-6)

    def test_masks_finer_than_the_features_by_no_whole_number(self):
        torch.manual_seed(0)
        head = iou_head()
        probs = torch.zeros(1, 1, 20, 20)
        probs[0, 0, 19, 19] = 1  # a pixel in a corner stays in the corner
        pooled = torch.zeros(1, 1, SIDE, SIDE)
        pooled[0, 0, 13, 13] = 1
        assert torch.equal(head(features(1), probs), head(features(1), pooled))

    def test_compiles_in_one_graph(self):
        head = iou_head()
        x, probs = features(3), torch.rand(3, 1, 28, 28)
        compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(x, probs), head(x, probs), atol=1e-6)

    def test_features_of_another_size_are_refused(self):
        with pytest.raises(ValueError, match=r"\[R, 8, 14, 14\], got \[2, 8, 7, 7\]"):
            iou_head()(torch.zeros(2, CHANNELS, 7, 7), torch.zeros(2, 1, 28, 28))


class TestTraining:
    def test_names_of_the_two_heads_are_stable(self):
        names = set(scoring_head().state_dict())
        iou_names = {f"mask_iou_head.{name}" for name in iou_head().state_dict()}
        assert names == {f"mask_head.{name}" for name in stock_head().state_dict()} | iou_names

    @pytest.mark.parametrize(("make", "classes", "iou_classes"), KINDS)
    @pytest.mark.parametrize("norm", ["", "GN"])
    def test_losses_against_a_loop(self, make, classes, iou_classes, norm):
        head = scoring_head(make, classes, iou_classes, norm, loss_weight=0.7).double()
        instances = [rois(0), no_rois(), rois(1)]
        x = features(sum(map(len, instances)), dtype=torch.float64)
        logits = head._outputs(x)["pred_mask_logits"]
        gt_classes = torch.cat([each.gt_classes for each in instances])
        sources = [(each, k) for each in instances for k in range(len(each))]
        squares, targets = [], []
        for r, (each, k) in enumerate(sources):
            chosen = logits[r, gt_classes[r] if classes > 1 else 0]
            ious = written_out(head.mask_iou_head, x[r : r + 1], chosen.sigmoid()[None, None])[0]
            crop = each.gt_masks[k].crop_and_resize(each.proposal_boxes.tensor[k : k + 1], len(chosen))[0]
            bitmap = each.gt_masks[k].to_bitmasks().tensor[0]
            ys, xs = bitmap.nonzero(as_tuple=True)
            x0, y0, x1, y1 = each.proposal_boxes.tensor[k]
            inside = ((xs + 0.5 >= x0) & (xs + 0.5 < x1) & (ys + 0.5 >= y0) & (ys + 0.5 < y1)).sum().item()
            predicted = chosen.sigmoid() >= 0.5
            both = (predicted & crop).sum().item()
            targets.append(both / (predicted.sum().item() + crop.sum().item() * len(xs) / inside - both))
            squares.append((ious[gt_classes[r] if iou_classes > 1 else 0] - targets[-1]) ** 2)
        head.min_iou = float(np.mean(targets))
        learned = [square for square, target in zip(squares, targets, strict=True) if target > head.min_iou]
        expected = 0.7 * 0.5 * torch.stack(learned).mean()
        assert expected > 1e-3

        with EventStorage():
            losses = head(x, instances)
            alone = copy.deepcopy(head.mask_head)(x, instances)
        assert losses.keys() == {*alone, "loss_mask_iou"}
        assert all(torch.equal(losses[name], alone[name]) for name in alone)

        assert losses["loss_mask_iou"].item() == pytest.approx(expected.item(), abs=1e-6)

    @pytest.mark.parametrize(("make", "classes", "iou_classes"), KINDS)
    def test_gradients_reach_every_parameter(self, make, classes, iou_classes):
        head = scoring_head(make, classes, iou_classes)
        with EventStorage():
            sum(head(features(len(rois())), [rois()]).values()).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())

    def test_the_iou_loss_teaches_the_mask_head_too(self):
        head = scoring_head()
        with EventStorage():
            head(features(len(rois())), [rois()])["loss_mask_iou"].backward()
        assert head.mask_head.mask_fcn1.weight.grad.abs().sum() > 0

    @pytest.mark.parametrize(("make", "classes", "iou_classes"), KINDS)
    @pytest.mark.parametrize("norm", ["", "GN"])
    def test_nothing_to_learn_from_gives_zeros_to_every_parameter(self, make, classes, iou_classes, norm):
        head = scoring_head(make, classes, iou_classes, norm)
        with EventStorage():
            losses = head(features(0), [no_rois(), no_rois()])
        assert [loss.item() for loss in losses.values()] == [0] * len(losses)
        sum(losses.values()).backward()
        assert all(p.grad is not None and not p.grad.any() for p in head.parameters())

    def test_no_mask_that_is_good_enough_gives_zeros(self):
        head = scoring_head(min_iou=0.999)
        with EventStorage():
            loss = head(features(len(rois())), [rois()])["loss_mask_iou"]
        loss.backward()
        assert loss.item() == 0
        assert all(p.grad is not None and not p.grad.any() for p in head.mask_iou_head.parameters())

    def test_500_objects_of_all_mask_types(self):
        found = []
        for convert in (lambda masks: masks, LabelMapMasks.to_bitmasks):
            instances = rois(count=500)
            instances.gt_masks = convert(instances.gt_masks)
            with EventStorage():
                found.append(scoring_head()(features(500), [instances])["loss_mask_iou"].item())
        assert found[0] > 0
        assert found[0] == pytest.approx(found[1], rel=1e-4)

    def test_polygons(self):
        instances = rois(1)
        boxes = instances.gt_masks.get_bounding_boxes().tensor.numpy()
        polygons = PolygonMasks([[box[[0, 1, 2, 1, 2, 3, 0, 3]].astype(float)] for box in boxes])
        found = []
        for masks in (polygons, BitMasks.from_polygon_masks(polygons, HEIGHT, WIDTH)):
            instances.gt_masks = masks
            with EventStorage():
                found.append(scoring_head()(features(len(instances)), [instances])["loss_mask_iou"].item())
        assert found[0] > 0
        assert found[0] == pytest.approx(found[1], rel=0.05)  # crops of polygons are made otherwise

    def test_learns_the_ious(self):
        torch.manual_seed(0)
        instances = rois(count=24)
        head = scoring_head()
        head.mask_head.requires_grad_(False)
        optimizer = torch.optim.Adam(head.mask_iou_head.parameters(), lr=3e-3)
        x, losses = features(24), []
        with EventStorage():
            for _ in range(25):
                losses.append(head(x, [instances])["loss_mask_iou"])
                optimizer.zero_grad()
                losses[-1].backward()
                optimizer.step()
        assert losses[-1] < 0.2 * losses[0]

    def test_loss_of_tensors(self):
        pred = torch.tensor([0.5, 0.2, 0.9, -3.0], requires_grad=True)
        target = torch.tensor([1.0, 0.2, 0.5, 0.0])
        loss = mask_iou_loss(pred, target)
        assert loss.item() == pytest.approx(0.5 * (0.25 + 0 + 0.16) / 3)
        assert mask_iou_loss(pred, target, min_iou=0.5).item() == pytest.approx(0.5 * 0.25)
        loss.backward()
        assert pred.grad[3] == 0


class TestInference:
    @pytest.mark.parametrize(("make", "classes", "iou_classes"), KINDS)
    @torch.no_grad()
    def test_masks_of_the_wrapped_head_and_scores_times_ious(self, make, classes, iou_classes):
        head = scoring_head(make, classes, iou_classes).eval()
        batch, plain = ([detections(7), detections(0), detections(5, seed=1)] for _ in range(2))
        x = features(12)
        result = head(x, batch)
        logits = head._outputs(x)["pred_mask_logits"]
        mask_rcnn_inference(logits, plain)
        probs = torch.cat([each.pred_masks for each in plain])
        ious = written_out(head.mask_iou_head, x, probs)
        labels = torch.cat([each.pred_classes for each in plain])
        ious = ious[torch.arange(12), labels if iou_classes > 1 else 0].clamp(0, 1)
        assert ious.std() > 0.01
        assert all(a is b for a, b in zip(result, batch, strict=True))
        for found, expected, scale in zip(result, plain, ious.split([7, 0, 5]), strict=True):
            assert torch.equal(found.pred_masks, expected.pred_masks)
            assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
            assert torch.equal(found.box_scores, expected.scores)
            assert torch.allclose(found.mask_ious, scale, atol=1e-6)
            assert torch.allclose(found.scores, expected.scores * scale, atol=1e-6)

    @torch.no_grad()
    def test_ious_are_confined_to_0_and_1(self):
        head = scoring_head().eval()
        for bias, iou in ((-9.0, 0), (9.0, 1)):
            head.mask_iou_head.fc_mask_iou.bias.fill_(bias)
            (result,) = head(features(6), [detections(6)])
            assert result.mask_ious.tolist() == [iou] * 6

    @torch.no_grad()
    def test_scores_that_stay(self):
        (result,) = scoring_head(rescore=False).eval()(features(6), [detections(6)])
        assert torch.equal(result.scores, detections(6).scores)
        assert not result.has("box_scores")
        assert result.mask_ious.shape == (6,)

    @torch.no_grad()
    def test_a_second_call_and_given_boxes_without_scores(self):
        head = scoring_head().eval()
        (once,) = head(features(6), [detections(6)])
        first = once.scores.clone()
        (twice,) = head(features(6), [once])
        assert torch.equal(twice.scores, first)
        given = detections(6)
        given.remove("scores")
        (result,) = head(features(6), [given])
        assert not result.has("scores")
        assert torch.equal(result.mask_ious, once.mask_ious)

    @torch.no_grad()
    def test_no_detections_and_no_images(self):
        head = scoring_head(classes=1, iou_classes=1).eval()
        (result,) = head(features(0), [detections(0)])
        assert result.pred_masks.shape == (0, 1, 28, 28)
        assert result.scores.shape == result.box_scores.shape == result.mask_ious.shape == (0,)
        assert head(features(0), []) == []

    @torch.no_grad()
    def test_half_precision(self):
        head = scoring_head().eval()
        (expected,) = head(features(6), [detections(6)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (found,) = head(features(6), [detections(6)])
        assert found.scores.dtype == torch.float32
        assert torch.allclose(found.scores, expected.scores, atol=0.05)
