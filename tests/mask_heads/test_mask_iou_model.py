"""Mask scoring as part of a model: built from configs, trained, predicting, optimised for prediction."""

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_mask_head
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from scipy import ndimage

from maskrcnn_plus.backbones import TimmBackbone
from maskrcnn_plus.config import detectron2_config, get_config, skip_pretrained
from maskrcnn_plus.inference.optimize import optimize_for_inference
from maskrcnn_plus.mask_heads.mask_iou import (
    MaskIoUHead,
    MaskScoringHead,
)
from maskrcnn_plus.mask_rcnn import MaskRCNNPlus
from maskrcnn_plus.masks.label_masks import LabelMapMasks
from maskrcnn_plus.ops.winograd import WinogradConv2d, is_fast

HEIGHT, WIDTH = 120, 150
CHANNELS, SIDE, NUM_CLASSES = 8, 14, 3
SHAPE = ShapeSpec(channels=CHANNELS, height=SIDE, width=SIDE)


def blobs(seed=0, sigma=6):
    """A label image of objects of irregular outline, and the ids of those with more than one pixel."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((HEIGHT, WIDTH)), sigma)
    labels, count = ndimage.label(noise > 0.3 * noise.std())
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    ids = torch.from_numpy(1 + np.flatnonzero(sizes > 1)).int()
    return LabelMapMasks(torch.from_numpy(labels.astype(np.int32)), ids)


def detections(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=random) * 80
    boxes = torch.cat([corners, corners + 5 + 30 * torch.rand(count, 2, generator=random)], dim=1)
    classes = torch.randint(NUM_CLASSES, (count,), generator=random)
    scores = torch.rand(count, generator=random).sort(descending=True).values
    return Instances((HEIGHT, WIDTH), pred_boxes=Boxes(boxes), pred_classes=classes, scores=scores)


def yacs_config(mask_head="MaskRCNNConvUpsampleHead", agnostic=False):
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskScoringHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 2
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = agnostic
    cfg.MODEL.MASK_SCORING = CfgNode(
        {
            "MASK_HEAD": mask_head,
            "NUM_CONV": 4,
            "CONV_DIM": 16,
            "NUM_FC": 2,
            "FC_DIM": 32,
            "NORM": "",
            "LOSS_WEIGHT": 0.5,
            "MIN_IOU": 0.1,
            "RESCORE": False,
        }
    )
    return cfg


class TestBuilding:
    def test_defaults_are_the_papers_and_names_are_stable(self):
        with torch.device("meta"):
            head = MaskIoUHead(ShapeSpec(channels=256, height=14, width=14), num_classes=80)
        assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {
            "convs.0.weight": (256, 257, 3, 3),
            "convs.0.bias": (256,),
            **{f"convs.{k}.weight": (256, 256, 3, 3) for k in (1, 2, 3)},
            **{f"convs.{k}.bias": (256,) for k in (1, 2, 3)},
            "fcs.0.weight": (1024, 256 * 7 * 7),
            "fcs.0.bias": (1024,),
            "fcs.1.weight": (1024, 1024),
            "fcs.1.bias": (1024,),
            "fc_mask_iou.weight": (80, 1024),
            "fc_mask_iou.bias": (80,),
        }

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"input_shape": ShapeSpec(channels=8)}, "channels, height and width"),
            ({"conv_dims": []}, "conv_dims"),
            ({"num_classes": 0}, "num_classes=0"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            MaskIoUHead(**{"input_shape": SHAPE, "num_classes": 3, **arguments})

    @pytest.mark.parametrize("agnostic", [False, True])
    def test_from_yacs(self, agnostic):
        head = build_mask_head(yacs_config(agnostic=agnostic), SHAPE)
        assert isinstance(head, MaskScoringHead)
        assert isinstance(head.mask_head, MaskRCNNConvUpsampleHead)
        assert head.mask_head.predictor.out_channels == head.mask_iou_head.num_classes == (1 if agnostic else 5)
        assert [conv.out_channels for conv in head.mask_iou_head.convs] == [16] * 4
        assert [fc.out_features for fc in head.mask_iou_head.fcs] == [32] * 2
        assert (head.loss_weight, head.min_iou, head.rescore) == (0.5, 0.1, False)

    def test_from_yacs_around_itself(self):
        with pytest.raises(ValueError, match="another mask head"):
            build_mask_head(yacs_config("MaskScoringHead"), SHAPE)

    def test_heads_with_a_forward_of_their_own_are_refused(self):
        class Other(MaskRCNNConvUpsampleHead):
            def forward(self, x, instances):
                return {}

        other = Other(SHAPE, num_classes=1, conv_dims=[4])
        for head in (other, torch.nn.Conv2d(8, 8, 1)):
            with pytest.raises(ValueError, match=f"masks of a {type(head).__name__}.*mask_outputs"):
                MaskScoringHead(mask_head=head, mask_iou_head=torch.nn.Identity())

    def test_shipped_config(self):
        cfg = get_config("nuclei/variants/mask_scoring")
        skip_pretrained(cfg)
        cfg.dataset.num_classes = 4
        with torch.device("meta"):
            head = instantiate(cfg.model.roi_heads.mask_head)
        assert head.mask_head.predictor.out_channels == head.mask_iou_head.num_classes == 4
        assert head.mask_iou_head.input_size == (96, 14, 14)


def mask_rcnn():
    """A small Mask R-CNN with mask scoring that detects at random."""
    model = detectron2_config("common/models/mask_rcnn_fpn.py").model
    model._target_ = MaskRCNNPlus
    model.backbone.bottom_up = L(TimmBackbone)(name="resnet18", out_features=["res2", "res3", "res4", "res5"])
    model.backbone.out_channels = 32
    model.proposal_generator.head.in_channels = 32
    model.proposal_generator.post_nms_topk = (50, 40)
    model.roi_heads.num_classes = 2
    model.roi_heads.box_head.input_shape = L(ShapeSpec)(channels=32, height=7, width=7)
    model.roi_heads.box_head.fc_dims = [32]
    model.roi_heads.box_predictor.input_shape = L(ShapeSpec)(channels=32)
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    shape = L(ShapeSpec)(channels=32, height=14, width=14)
    model.roi_heads.mask_head = L(MaskScoringHead)(
        mask_head=L(MaskRCNNConvUpsampleHead)(input_shape=shape, num_classes=2, conv_dims=[32, 32, 32]),
        mask_iou_head=L(MaskIoUHead)(input_shape=shape, num_classes=2, conv_dims=[32] * 4, fc_dims=[32, 32]),
    )
    torch.manual_seed(0)
    return instantiate(model)


class TestModel:
    def test_a_training_step_with_and_without_objects(self):
        model = mask_rcnn()
        image = torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8)
        some = Instances((HEIGHT, WIDTH))
        masks = blobs()
        some.gt_boxes, some.gt_masks = masks.get_bounding_boxes(), masks
        some.gt_classes = torch.zeros(len(masks), dtype=torch.int64)
        none = Instances((HEIGHT, WIDTH))
        none.gt_boxes, none.gt_classes = Boxes(torch.zeros(0, 4)), torch.zeros(0, dtype=torch.int64)
        for targets in ([some, none], [none, none]):
            model.zero_grad()
            with EventStorage():
                losses = model([{"image": image, "instances": each} for each in targets])
            sum(losses.values()).backward()
            assert all(loss.isfinite() for loss in losses.values())
            assert (losses["loss_mask_iou"] > 0) == (targets[0] is some)
            assert all(p.grad is not None for p in model.roi_heads.mask_head.parameters())

    @torch.inference_mode()
    def test_optimised_for_inference_it_gives_the_same(self):
        model = mask_rcnn().eval()
        mask_head = model.roi_heads.mask_head
        mask_head.mask_head.predictor.weight.mul_(300)
        mask_head.mask_iou_head.fc_mask_iou.weight.mul_(30)
        mask_head.mask_iou_head.fc_mask_iou.bias.fill_(0.5)
        example = {"image": torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8)}
        pairs = [detections(30) for _ in range(2)]
        for given in pairs:
            given.pred_classes %= 2
        (expected,) = model.inference([example], detected_instances=pairs[:1], do_postprocess=False)
        optimize_for_inference(model.to(memory_format=torch.channels_last))
        if is_fast():
            assert sum(isinstance(conv, WinogradConv2d) for conv in mask_head.mask_iou_head.convs) == 2
        (found,) = model.inference([example], detected_instances=pairs[1:], do_postprocess=False)
        assert 0.01 < expected.mask_ious.std() < 0.4
        assert expected.pred_masks.std() > 0.1
        assert torch.allclose(found.mask_ious, expected.mask_ious, atol=1e-4)
        assert torch.allclose(found.scores, expected.scores, atol=1e-4)
        assert torch.allclose(found.pred_masks, expected.pred_masks, atol=1e-4)

    @torch.inference_mode()
    def test_results_at_the_size_of_the_image(self):
        model = mask_rcnn().eval()
        image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
        result = model([{"image": image, "height": 192, "width": 256}])[0]["instances"]
        assert len(result) == len(result.pred_masks_rle) == len(result.box_scores) > 0
        assert torch.allclose(result.scores, result.box_scores * result.mask_ious)
