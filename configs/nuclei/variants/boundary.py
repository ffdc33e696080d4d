# The base config with the boundary-preserving mask head, its features pooled at the boundary's resolution.
from maskrcnn_plus.mask_heads import BoundaryMaskHead

from ..mask_rcnn_lite0_fpn import dataloader, dataset, lr_multiplier, model, optimizer, train

model.roi_heads.mask_pooler.output_size = 28
model.roi_heads.mask_head._target_ = BoundaryMaskHead
model.roi_heads.mask_head.input_shape.height = 28
model.roi_heads.mask_head.input_shape.width = 28
model.roi_heads.mask_head.boundary_stride = 2

train.output_dir = "output/nuclei_boundary"
