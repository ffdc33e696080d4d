# The base config with Detectron2's PointRend (Kirillov et al., 2020): masks of 56 x 56, refined where uncertain.
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from maskrcnn_plus.mask_heads import PointRendHead

from ..mask_rcnn_lite0_fpn import dataloader, dataset, lr_multiplier, model, optimizer, train

model.roi_heads.mask_in_features = ["p2"]
model.roi_heads.mask_pooler = None
model.roi_heads.mask_head = L(PointRendHead)(
    input_shape=L("builtins.dict")(p2=L(ShapeSpec)(channels="${model.backbone.out_channels}", stride=4)),
    num_classes="${..num_classes}",
    conv_dim=96,
    fc_dim=512,
    point_fc_dim=96,
    subdivision_steps=3,
    subdivision_points=196,
)

train.output_dir = "output/nuclei_point_rend"
