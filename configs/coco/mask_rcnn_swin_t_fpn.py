# Mask R-CNN Swin-T-FPN with the recipe of Liu et al., "Swin Transformer" (2021): 36 epochs of AdamW, images of 480 to
# 800 pixels, from timm's ImageNet weights. The paper's network also has a layer norm behind each stage.
from detectron2.config import LazyCall as L

from maskrcnn_plus.backbones import TimmBackbone
from maskrcnn_plus.backbones.timm import pixel_mean, pixel_std
from maskrcnn_plus.learning_rate import linear_lr

from ..common.optim import AdamW as optimizer
from .mask_rcnn_r50_fpn_3x import dataloader, dataset, lr_multiplier, model, train

model.backbone.bottom_up = L(TimmBackbone)(
    name="swin_tiny_patch4_window7_224.ms_in1k",
    out_features=["res2", "res3", "res4", "res5"],
    weights="timm",
    options=dict(drop_path_rate=0.2, always_partition=True),
)
model.pixel_mean = L(pixel_mean)(name="${model.backbone.bottom_up.name}")
model.pixel_std = L(pixel_std)(name="${model.backbone.bottom_up.name}")
model.input_format = "RGB"

dataloader.train.mapper.augmentations[0].short_edge_length = [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]

optimizer.lr = linear_lr(1e-4, images=16)
optimizer.params.overrides = dict(relative_position_bias_table=dict(weight_decay=0.0))
lr_multiplier.scheduler.milestones = [202500, 247500, 270000]  # epochs 27 and 33 of 36

train.output_dir = "output/coco/mask_rcnn_swin_t_fpn"
train.init_checkpoint = ""
