"""DenseCascadeROIHeads is CascadeROIHeads where its options are off, and trains masks as DenseROIHeads does."""

import pytest
import torch
from detectron2.config import get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import CascadeROIHeads, build_roi_heads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from maskrcnn_plus.config import add_config, get_config
from maskrcnn_plus.masks.label_masks import LabelMapMasks
from maskrcnn_plus.roi import DenseCascadeROIHeads, DenseROIHeads

SIDE = 96


def heads(target, **options):
    """The heads of the nuclei config with one box head or three, small."""
    variant = "mask_rcnn_lite0_fpn" if target is DenseROIHeads else "variants/cascade_box_head"
    cfg = get_config(f"nuclei/{variant}")
    cfg.dataset.num_classes = 2
    cfg.model.backbone.out_channels = 8
    call = cfg.model.roi_heads
    call._target_ = target
    box_heads = [call.box_head] if target is DenseROIHeads else call.box_heads
    predictors = [call.box_predictor] if target is DenseROIHeads else call.box_predictors
    for box_head, predictor in zip(box_heads, predictors, strict=True):
        box_head.fc_dims = [16]
        predictor.input_shape.channels = 16
    call.mask_head.conv_dims = [8, 8]
    call.update(options)
    torch.manual_seed(0)
    module = instantiate(call)
    torch.manual_seed(1)
    for parameter in module.mask_head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module


def features():
    random = torch.Generator().manual_seed(7)
    return {
        f"p{n}": torch.randn(1, 8, max(SIDE >> n, 1), max(SIDE >> n, 1), generator=random, requires_grad=True)
        for n in (2, 3, 4, 5)
    }


def image_of(columns):
    """`columns` x `columns` squares, and two proposals about each."""
    random = torch.Generator().manual_seed(3)
    cell = SIDE // max(columns, 1)
    label_map = torch.zeros(SIDE, SIDE, dtype=torch.int32)
    boxes = []
    for index in range(columns**2):
        x, y = index % columns * cell, index // columns * cell
        label_map[y : y + cell - 3, x : x + cell - 3] = index + 1
        boxes.append([x, y, x + cell - 3, y + cell - 3])
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = LabelMapMasks(label_map, torch.arange(1, columns**2 + 1))
    classes = torch.arange(columns**2) % 2
    targets = Instances((SIDE, SIDE), gt_boxes=Boxes(boxes), gt_classes=classes, gt_masks=masks)
    near = boxes.repeat(2, 1)
    near = near + torch.randn(near.shape, generator=random) * 0.05 * cell
    far = torch.rand(20, 2, generator=random) * 60
    found = Boxes(torch.cat([near, torch.cat([far, far + 20], dim=1)]))
    found.clip((SIDE, SIDE))
    return targets, Instances(
        (SIDE, SIDE), proposal_boxes=found, objectness_logits=torch.randn(len(found), generator=random)
    )


def losses_of(module, columns=4):
    targets, proposals = image_of(columns)
    torch.manual_seed(3)
    with EventStorage() as storage:
        _, losses = module.train()(None, features(), [proposals], [targets])
        sum(losses.values()).backward()
    return losses, {name: value for name, (value, _) in storage.latest().items()}


def test_without_options_it_is_detectron2s():
    ours, theirs = heads(DenseCascadeROIHeads), heads(CascadeROIHeads)
    (losses, logged), (expected, expected_logged) = losses_of(ours), losses_of(theirs)
    assert len(losses) == 3 * 2 + 1
    assert {name: loss.item() for name, loss in losses.items()} == {
        name: loss.item() for name, loss in expected.items()
    }
    assert logged == expected_logged
    assert logged["stage2/roi_head/num_fg_samples"] > 5
    for (name, mine), (other, parameter) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(mine.grad, parameter.grad), name
        assert mine.grad.abs().sum() > 0, name
    _, proposals = image_of(4)
    with torch.no_grad():
        found, expected = (module.eval()(None, features(), [proposals])[0][0] for module in (ours, theirs))
    assert len(found) == len(expected) > 5
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.pred_masks, expected.pred_masks)


@pytest.mark.parametrize(
    "options", [dict(soft_mask_targets=True), dict(mask_batch_size_per_image=7), dict(batch_size_per_image=16)], ids=str
)
def test_masks_learn_what_those_of_dense_heads_learn(options):
    """Both sample the proposals before anything else is random, unless a limit draws masks again."""
    (cascade, logged), (dense, expected) = (
        losses_of(heads(each, **options)) for each in (DenseCascadeROIHeads, DenseROIHeads)
    )
    plain = losses_of(heads(DenseCascadeROIHeads))[0]["loss_mask"]
    assert cascade["loss_mask"].item() == dense["loss_mask"].item() != plain.item()
    assert logged["mask_rcnn/accuracy"] == expected["mask_rcnn/accuracy"]


def test_an_image_without_objects():
    losses, _ = losses_of(heads(DenseCascadeROIHeads, soft_mask_targets=True), columns=0)
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_mask"] == 0


def test_soft_nms_is_refused_where_it_would_do_nothing():
    cfg = get_config("nuclei/variants/soft_nms").model.roi_heads.box_predictor
    predictor = get_config("nuclei/variants/cascade_box_head").model.roi_heads.box_predictors[0]
    predictor._target_, predictor.soft_nms_method = cfg._target_, "linear"
    with pytest.raises(ValueError, match="no Soft-NMS"):
        heads(DenseCascadeROIHeads, box_predictors=[predictor] * 3)


@pytest.mark.parametrize("soft_nms", ["", "linear"])
def test_of_a_yacs_config_by_name(soft_nms):
    cfg = get_cfg()
    add_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.NAME = "DenseCascadeROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3"]
    cfg.MODEL.ROI_HEADS.SOFT_MASK_TARGETS = True
    cfg.MODEL.ROI_HEADS.MASK_BATCH_SIZE_PER_IMAGE = 5
    cfg.MODEL.ROI_HEADS.SOFT_NMS_METHOD = soft_nms
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    shapes = {name: ShapeSpec(channels=8, stride=stride) for name, stride in (("p2", 4), ("p3", 8))}
    if soft_nms:
        with pytest.raises(ValueError, match="SOFT_NMS_METHOD"):
            build_roi_heads(cfg, shapes)
        return
    module = build_roi_heads(cfg, shapes)
    assert type(module) is DenseCascadeROIHeads
    assert (module.soft_mask_targets, module.mask_batch_size_per_image, module.num_cascade_stages) == (True, 5, 3)
    losses, _ = losses_of(module)
    assert all(loss.isfinite() for loss in losses.values())
