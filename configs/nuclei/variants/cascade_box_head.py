# The base config with Detectron2's Cascade R-CNN (Cai and Vasconcelos, 2018): three class-agnostic box heads, each
# trained on the boxes of the one before it, at a higher IoU.
from detectron2.modeling.roi_heads import CascadeROIHeads

from ..mask_rcnn_lite0_fpn import dataloader, dataset, lr_multiplier, model, optimizer, train

model.roi_heads._target_ = CascadeROIHeads

model.roi_heads.box_heads = [model.roi_heads.box_head] * 3
del model.roi_heads.box_head

model.roi_heads.box_predictor.cls_agnostic_bbox_reg = True
model.roi_heads.box_predictor.num_classes = "${...num_classes}"
model.roi_heads.box_predictors = [model.roi_heads.box_predictor] * 3
model.roi_heads.box_predictors[1].box2box_transform.weights = (20, 20, 10, 10)
model.roi_heads.box_predictors[2].box2box_transform.weights = (30, 30, 15, 15)
del model.roi_heads.box_predictor

model.roi_heads.proposal_matchers = [model.roi_heads.proposal_matcher] * 3
model.roi_heads.proposal_matchers[1].thresholds = [0.6]
model.roi_heads.proposal_matchers[2].thresholds = [0.7]
del model.roi_heads.proposal_matcher

train.output_dir = "output/nuclei_cascade_box_head"
