# Mask R-CNN R50-FPN, 3x, of Detectron2's model zoo, with the fast RPN and RoIAlign.
from maskrcnn_plus.config import detectron2_config
from maskrcnn_plus.learning_rate import linear_lr

from ..common.coco_data import dataloader, dataset
from ..common.mask_rcnn_fpn import model
from ..common.train import train

model.backbone.bottom_up.freeze_at = 2

optimizer = detectron2_config("common/optim.py").SGD
optimizer.lr = linear_lr(0.02, images=16)
lr_multiplier = detectron2_config("common/coco_schedule.py").lr_multiplier_3x

train.output_dir = "output/coco/mask_rcnn_r50_fpn_3x"
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.max_iter = 270000
train.checkpointer.period = 5000
train.checkpointer.max_to_keep = 5
train.eval_period = 5000
train.best.metric = "segm/AP"
