# Mask R-CNN R101-FPN, 3x, of Detectron2's model zoo, with the fast RPN and RoIAlign.
from .mask_rcnn_r50_fpn_3x import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101

train.output_dir = "output/coco/mask_rcnn_r101_fpn_3x"
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
