# Mask R-CNN EfficientNet-B3-FPN, trained as the model zoo's R50-FPN 3x, from timm's ImageNet weights.
from detectron2.config import LazyCall as L

from maskrcnn_plus.backbones import TimmBackbone
from maskrcnn_plus.backbones.timm import pixel_mean, pixel_std

from .mask_rcnn_r50_fpn_3x import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = L(TimmBackbone)(
    name="efficientnet_b3.ra2_in1k",
    out_features=["res2", "res3", "res4", "res5"],
    weights="timm",
    norm="FrozenBN",
    options=dict(drop_path_rate=0.2),
)
model.pixel_mean = L(pixel_mean)(name="${model.backbone.bottom_up.name}")
model.pixel_std = L(pixel_std)(name="${model.backbone.bottom_up.name}")
model.input_format = "RGB"

train.output_dir = "output/coco/mask_rcnn_efficientnet_b3_fpn"
train.init_checkpoint = ""
