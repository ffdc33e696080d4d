# Detectron2's model zoo: COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x and _3x, whose weights it takes, with the fast
# RPN and RoIAlign. Training starts from the 3x weights.
from maskrcnn_plus.mask_rcnn import MaskRCNNPlus
from maskrcnn_plus.roi import PyramidROIAlign
from maskrcnn_plus.rpn import BatchedRPN

from ..coco.mask_rcnn_r50_fpn import dataloader, dataset, lr_multiplier, model, optimizer, train

model._target_ = MaskRCNNPlus
model.backbone.bottom_up.freeze_at = 2
model.proposal_generator._target_ = BatchedRPN
model.roi_heads.box_pooler._target_ = PyramidROIAlign
model.roi_heads.mask_pooler._target_ = PyramidROIAlign

train.output_dir = "output/zoo/detectron2_mask_rcnn_r50_fpn"
train.init_checkpoint = "detectron2://COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl"
