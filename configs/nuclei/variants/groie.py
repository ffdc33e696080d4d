# The base config with GRoIE (Rossi et al., 2020) for the boxes and the masks: features of every level of the pyramid.
from maskrcnn_plus.roi import GenericRoIExtractor

from ..mask_rcnn_lite0_fpn import dataloader, dataset, lr_multiplier, model, optimizer, train

model.roi_heads.box_pooler._target_ = GenericRoIExtractor
model.roi_heads.box_pooler.in_channels = "${model.backbone.out_channels}"
del model.roi_heads.box_pooler.canonical_box_size

model.roi_heads.mask_pooler._target_ = GenericRoIExtractor
model.roi_heads.mask_pooler.in_channels = "${model.backbone.out_channels}"
del model.roi_heads.mask_pooler.canonical_box_size

train.output_dir = "output/nuclei_groie"
