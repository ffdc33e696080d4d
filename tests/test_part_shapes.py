"""Parts that do not fit are refused when the model is built, with the keys that must agree."""

import pytest
import torch
from detectron2.modeling import GeneralizedRCNN

from maskrcnn_plus.build import build
from maskrcnn_plus.config import detectron2_config, load_config
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.mask_rcnn import MaskRCNNPlus
from maskrcnn_plus.roi import PyramidROIAlign
from maskrcnn_plus.rpn import BatchedRPN

MODEL = "nuclei/mask_rcnn_lite0_fpn"
CLASSES = "dataset.num_classes=3"
RPN, HEADS = "model.proposal_generator", "model.roi_heads"
STRIDES = "[8,16,32,64,128]"
MISFITS = {
    f"{RPN}.anchor_generator.sizes=[[8],[16],[32],[64],[128]]": ["anchor_generator", "sizes", "head.num_anchors"],
    f"{RPN}.anchor_generator.sizes=[[8,9],[16,17],[32],[64,65],[128,129]]": ["6, 6, 3, 6, 6", "head.num_anchors"],
    f"{RPN}.head.num_anchors=3": ["anchor_generator", "head.num_anchors"],
    f"{RPN}.in_features=[p2,p3,p4,p5,p6,p6]": ["in_features", "anchor_generator"],
    f"{RPN}.in_features=[p3,p4,p5]": ["proposal_generator.in_features", "anchor_generator.strides", "8, 16, 32"],
    f"{RPN}.in_features=[p2,p9]": ["proposal_generator.in_features", "p9", "p2, p3, p4, p5, p6"],
    f"{RPN}.anchor_generator.strides={STRIDES}": ["anchor_generator.strides", "4, 8, 16, 32, 64"],
    f"{RPN}.head.in_channels=64": ["proposal_generator.head.in_channels", "backbone.out_channels"],
    f"{HEADS}.box_in_features=[p2,p3]": ["roi_heads.box_in_features", "roi_heads.box_pooler.scales"],
    f"{HEADS}.mask_in_features=[p3,p4,p5,p6]": ["roi_heads.mask_in_features", "roi_heads.mask_pooler.scales"],
    f"{HEADS}.box_pooler.scales=[0.125,0.0625,0.03125,0.015625]": ["roi_heads.box_pooler.scales", "4, 8, 16, 32"],
    f"{HEADS}.box_pooler.output_size=8": ["box_pooler.output_size", "box_head.input_shape", "8 x 8"],
    f"{HEADS}.box_head.input_shape.channels=64": ["box_head.input_shape", "backbone.out_channels"],
    f"{HEADS}.box_head.fc_dims=[256]": ["box_predictor.input_shape", "fc_dims"],
    f"{HEADS}.mask_head.input_shape.channels=64": ["mask_head.input_shape.channels", "backbone.out_channels"],
    f"{HEADS}.mask_head.num_classes=2": ["mask_head.num_classes", "roi_heads.num_classes"],
    f"{HEADS}.box_predictor.num_classes=1": ["box_predictor.num_classes", "roi_heads.num_classes"],
}


def build_with(*overrides):
    with torch.device("meta"):
        return build(load_config(MODEL, [CLASSES, "model.backbone.bottom_up.weights=''", *overrides]), "model")


@pytest.mark.parametrize("override", MISFITS)
def test_what_does_not_fit_is_told_with_its_keys(override):
    with pytest.raises(UserError) as error:
        build_with(override)
    for part in MISFITS[override]:
        assert part in str(error.value)


def test_what_fits_is_taken():
    model = build_with(f"{HEADS}.mask_pooler.output_size=7", f"{HEADS}.mask_head.num_classes=1")
    assert (model.roi_heads.num_classes, model.roi_heads.mask_head.predictor.out_channels) == (3, 1)
    model = build_with("model.backbone.out_channels=64")
    assert model.proposal_generator.rpn_head.objectness_logits.in_channels == 64
    model = build_with(f"{HEADS}.box_pooler.output_size=[5,9]", f"{HEADS}.box_head.input_shape={{height: 5, width: 9}}")
    assert model.roi_heads.box_head.fcs[0].in_features % 45 == 0
    model = build_with(f"{RPN}.in_features=[p2,p3,p4]")  # of five levels of anchors the first three
    assert len(model.proposal_generator.anchor_generator.strides) == 5


def test_a_backbone_and_parts_of_somebody_elses_are_not_looked_into():
    cfg = detectron2_config("common/models/mask_rcnn_fpn.py")
    cfg.model._target_, cfg.model.proposal_generator._target_ = MaskRCNNPlus, BatchedRPN
    cfg.model.roi_heads.mask_pooler._target_ = PyramidROIAlign
    with torch.device("meta"):
        model = build(cfg, "model")
    parts = {name: getattr(model, name) for name in ("backbone", "proposal_generator", "roi_heads")}

    class Shapeless(type(model.backbone)):
        def output_shape(self):
            raise NotImplementedError

    model.backbone.__class__ = Shapeless
    for kind in (GeneralizedRCNN, MaskRCNNPlus):
        assert kind(**parts, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3).backbone is model.backbone
