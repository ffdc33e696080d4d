# Mask R-CNN on a plain ViT-B with MAE weights, by the recipe of ViTDet (Li et al., 2022): windowed attention, simple
# feature pyramid, large-scale jitter, 100 epochs. It has no relative position embeddings, which timm's ViT lacks.
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.solver import WarmupParamScheduler
from detectron2.utils.registry import locate
from fvcore.common.param_scheduler import MultiStepParamScheduler

from maskrcnn_plus.backbones import PlainViT
from maskrcnn_plus.backbones.timm import pixel_mean, pixel_std
from maskrcnn_plus.learning_rate import linear_lr
from maskrcnn_plus.necks import SimpleFeaturePyramid
from maskrcnn_plus.training.layer_decay import layer_decay_params

from ..common.coco_lsj_data import dataloader, dataset
from ..common.mask_rcnn_fpn import model
from ..common.optim import AdamW as optimizer
from ..common.train import train

model.backbone = L(SimpleFeaturePyramid)(
    net=L(PlainViT)(
        name="vit_base_patch16_224.mae",
        weights="timm",
        window_size=14,
        global_blocks=[2, 5, 8, 11],
        keep_prefix_tokens=False,
        drop_path_rate=0.1,
    ),
    in_feature="last_feat",
    out_channels=256,
    scale_factors=[4.0, 2.0, 1.0, 0.5],
    top_block=L(LastLevelMaxPool)(),
    norm="LN",
    square_pad=1024,
)

model.proposal_generator.head.conv_dims = [-1, -1]

# Layer norm over the channels of each pixel; v0.6 of Detectron2 does not know it as "LN".
_channel_norm = L(locate)(name="timm.layers.LayerNorm2d")
model.roi_heads.box_head.conv_dims = [256, 256, 256, 256]
model.roi_heads.box_head.fc_dims = [1024]
model.roi_heads.box_head.conv_norm = _channel_norm
model.roi_heads.mask_head.conv_norm = _channel_norm

model.pixel_mean = L(pixel_mean)(name="${model.backbone.net.name}")
model.pixel_std = L(pixel_std)(name="${model.backbone.net.name}")
model.input_format = "RGB"

optimizer.params = L(layer_decay_params)(
    base_lr="${optimizer.lr}",
    decay_rate=0.7,
    weight_decay_norm=0.0,
    overrides=dict(pos_embed=dict(weight_decay=0.0)),
)
optimizer.lr = linear_lr(1e-4, images=64)
optimizer.weight_decay = 0.1

# 100 epochs of 118,000 images at 64 images an iteration.
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01], milestones=[163889, 177546], num_updates="${train.max_iter}"
    ),
    warmup_length=250 / 184375,
    warmup_factor=0.001,
)

train.output_dir = "output/coco_vitb"
train.max_iter = 184375
train.amp.enabled = True
train.ddp.fp16_compression = True
train.checkpointer.period = 5000
train.checkpointer.max_to_keep = 5
train.eval_period = 5000
train.best.metric = "segm/AP"
