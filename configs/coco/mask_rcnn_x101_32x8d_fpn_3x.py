# Mask R-CNN X101-32x8d-FPN, 3x, of Detectron2's model zoo, with the fast RPN and RoIAlign.
from ..common.resnext101 import stages
from .mask_rcnn_r50_fpn_3x import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages = stages
model.pixel_std = [57.375, 57.120, 58.395]  # of the network trained with Caffe2, BGR as the mean

train.output_dir = "output/coco/mask_rcnn_x101_32x8d_fpn_3x"
train.init_checkpoint = "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl"
