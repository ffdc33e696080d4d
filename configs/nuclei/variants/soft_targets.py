# The base config with mask targets that say how much of each cell a nucleus covers.
from maskrcnn_plus.roi import DenseROIHeads

from ..mask_rcnn_lite0_fpn import dataloader, dataset, lr_multiplier, model, optimizer, train

model.roi_heads._target_ = DenseROIHeads
model.roi_heads.soft_mask_targets = True

train.output_dir = "output/nuclei_soft_targets"
