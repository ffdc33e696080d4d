# Mask R-CNN for small, dense objects: Detectron2's heads on a timm backbone, with the fast RPN and RoIAlign. Needs a
# top-level `dataset` with `num_classes` and `max_objects`, the two numbers that everything else follows.
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from maskrcnn_plus.backbones import TimmBackbone
from maskrcnn_plus.backbones.timm import pixel_mean, pixel_std
from maskrcnn_plus.config import detectron2_config
from maskrcnn_plus.mask_heads import ConvUpsampleMaskHead
from maskrcnn_plus.mask_rcnn import MaskRCNNPlus
from maskrcnn_plus.roi import PyramidROIAlign
from maskrcnn_plus.rpn import BatchedRPN

model = detectron2_config("common/models/mask_rcnn_fpn.py").model
model._target_ = MaskRCNNPlus

model.backbone.bottom_up = L(TimmBackbone)(
    name="tf_efficientnet_lite0",
    out_features=["res2", "res3", "res4", "res5"],
    weights="package",
    norm="BN",
)
model.backbone.out_channels = 96

# Anchors from 12 to 272 px, two scales an octave; boxes of 112 px pool from p4 (Detectron2: 224 px).
model.proposal_generator._target_ = BatchedRPN
model.proposal_generator.anchor_generator.sizes = [[12, 17], [24, 34], [48, 68], [96, 136], [192, 272]]
model.proposal_generator.head.in_channels = "${model.backbone.out_channels}"
model.proposal_generator.head.num_anchors = 6
model.proposal_generator.pre_nms_topk = (1000, 2000)
model.proposal_generator.post_nms_topk = (500, 1000)

model.roi_heads.num_classes = "${dataset.num_classes}"
model.roi_heads.batch_size_per_image = 128
model.roi_heads.box_pooler._target_ = PyramidROIAlign
model.roi_heads.box_pooler.canonical_box_size = 112
model.roi_heads.mask_pooler._target_ = PyramidROIAlign
model.roi_heads.mask_pooler.canonical_box_size = 112
model.roi_heads.box_head.input_shape = L(ShapeSpec)(channels="${model.backbone.out_channels}", height=7, width=7)
model.roi_heads.box_head.fc_dims = [512, 512]
model.roi_heads.box_predictor.input_shape = L(ShapeSpec)(channels=512)
model.roi_heads.box_predictor.test_topk_per_image = "${dataset.max_objects}"
model.roi_heads.mask_head._target_ = ConvUpsampleMaskHead
model.roi_heads.mask_head.input_shape = L(ShapeSpec)(channels="${model.backbone.out_channels}", height=14, width=14)
model.roi_heads.mask_head.conv_dims = [96, 96, 96, 96, 96]

# What the backbone's weights were trained with, for RGB in 0..255.
_backbone = dict(name="${model.backbone.bottom_up.name}", in_chans="${oc.select:model.backbone.bottom_up.in_chans,3}")
model.pixel_mean = L(pixel_mean)(**_backbone)
model.pixel_std = L(pixel_std)(**_backbone)
model.input_format = "RGB"
