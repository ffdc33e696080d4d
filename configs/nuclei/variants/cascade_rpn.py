# The base config with Cascade RPN. Its anchors are 16 to 256 px, one a place: boxes up to 22 px are learned from p2.
from detectron2.config import LazyCall as L
from detectron2.modeling.box_regression import Box2BoxTransform

from maskrcnn_plus.rpn import CascadeRPN, CascadeRPNHead, square_anchors

from ..mask_rcnn_lite0_fpn import dataloader, dataset, lr_multiplier, model, optimizer, train

model.proposal_generator._target_ = CascadeRPN
model.proposal_generator.head = L(CascadeRPNHead)(in_channels="${model.backbone.out_channels}")
model.proposal_generator.anchor_generator = L(square_anchors)(strides=[4, 8, 16, 32, 64], anchor_scale=4.0)
model.proposal_generator.initial_box2box_transform = L(Box2BoxTransform)(weights=[10.0, 10.0, 2.0, 2.0])
model.proposal_generator.box2box_transform.weights = [20.0, 20.0, 10.0, 10.0]

train.output_dir = "output/nuclei_cascade_rpn"
