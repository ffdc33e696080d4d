# The base config with Soft-NMS (Bodla et al., 2017) in place of NMS: nothing changes in training.
from maskrcnn_plus.roi import FastRCNNOutput

from ..mask_rcnn_lite0_fpn import dataloader, dataset, lr_multiplier, model, optimizer, train

model.roi_heads.box_predictor._target_ = FastRCNNOutput
model.roi_heads.box_predictor.soft_nms_method = "gaussian"
model.roi_heads.box_predictor.soft_nms_sigma = 0.5

train.output_dir = "output/nuclei_soft_nms"
