# Mask R-CNN R50-FPN, 1x, of stock Detectron2 parts with the model zoo's values: the anchor that our parts are compared
# with.
from maskrcnn_plus.config import detectron2_config
from maskrcnn_plus.learning_rate import linear_lr

from ..common.coco_data import dataloader, dataset
from ..common.train import train

model = detectron2_config("common/models/mask_rcnn_fpn.py").model
model.backbone.bottom_up.freeze_at = 2
model.roi_heads.num_classes = "${dataset.num_classes}"
model.roi_heads.box_predictor.test_topk_per_image = "${dataset.max_objects}"

optimizer = detectron2_config("common/optim.py").SGD
optimizer.lr = linear_lr(0.02, images=16)
lr_multiplier = detectron2_config("common/coco_schedule.py").lr_multiplier_1x

train.output_dir = "output/coco"
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.max_iter = 90000
train.checkpointer.period = 5000
train.checkpointer.max_to_keep = 5
train.eval_period = 5000
train.best.metric = "segm/AP"
