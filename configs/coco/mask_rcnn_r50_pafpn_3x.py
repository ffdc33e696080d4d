# Mask R-CNN R50 with PAFPN (Liu et al., 2018) in place of FPN, trained as the model zoo's R50-FPN 3x.
from maskrcnn_plus.necks import PAFPN

from .mask_rcnn_r50_fpn_3x import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone._target_ = PAFPN

train.output_dir = "output/coco/mask_rcnn_r50_pafpn_3x"
