# The base config with PAFPN (Liu et al., 2018) in place of FPN.
from maskrcnn_plus.necks import PAFPN

from ..mask_rcnn_lite0_fpn import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone._target_ = PAFPN

train.output_dir = "output/nuclei_pafpn"
