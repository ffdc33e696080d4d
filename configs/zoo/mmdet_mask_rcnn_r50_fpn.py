# MMDetection's mask-rcnn_r50_fpn_1x_coco: its weights, its pre-processing, its results.
from detectron2.config import LazyCall as L

from maskrcnn_plus.config import detectron2_config
from maskrcnn_plus.data import MMCVResize
from maskrcnn_plus.learning_rate import linear_lr

from ..common.coco_data import dataloader, dataset
from ..common.mask_rcnn_fpn import model
from ..common.train import train

dataloader.train.mapper.augmentations[0] = L(MMCVResize)(short_edge_length=800, max_size=1333)
dataloader.test.mapper.augmentations[0] = L(MMCVResize)(short_edge_length=800, max_size=1333)

model.backbone.bottom_up.stages.stride_in_1x1 = False  # style="pytorch"
model.backbone.bottom_up.freeze_at = 2
model.pixel_mean = [123.675, 116.28, 103.53]
model.pixel_std = [58.395, 57.12, 57.375]
model.input_format = "RGB"

optimizer = detectron2_config("common/optim.py").SGD
optimizer.lr = linear_lr(0.02, images=16)
lr_multiplier = detectron2_config("common/coco_schedule.py").lr_multiplier_1x

train.output_dir = "output/zoo/mmdet_mask_rcnn_r50_fpn"
train.init_checkpoint = "https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/mask_rcnn_r50_fpn_1x_coco/mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth"
train.max_iter = 90000
train.checkpointer.period = 5000
train.eval_period = 5000
train.best.metric = "segm/AP"
