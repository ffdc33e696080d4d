# The base config with proposals ranked by objectness and predicted IoU together.
from maskrcnn_plus.rpn import IoUAwareRPN, IoUAwareRPNHead

from ..mask_rcnn_lite0_fpn import dataloader, dataset, lr_multiplier, model, optimizer, train

model.proposal_generator._target_ = IoUAwareRPN
model.proposal_generator.head._target_ = IoUAwareRPNHead

train.output_dir = "output/nuclei_iou_aware"
