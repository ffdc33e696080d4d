# A small and fast Mask R-CNN for cameras: MobileNetV4-S, narrow heads, images of 320 x 512 px at most, 36 epochs of
# AdamW from ImageNet weights of timm. No weights that are trained on COCO come with it.
from maskrcnn_plus.learning_rate import linear_lr

from ..common.coco_data import dataloader, dataset
from ..common.mask_rcnn_timm_fpn import model
from ..common.optim import AdamW as optimizer
from ..common.optim import one_cycle as lr_multiplier
from ..common.train import train

model.backbone.bottom_up.name = "mobilenetv4_conv_small.e2400_r224_in1k"
model.backbone.bottom_up.weights = "timm"
model.backbone.out_channels = 64

# One scale a level, for images of less than half the usual size: 16 to 256 px.
model.proposal_generator.anchor_generator.sizes = [[16], [32], [64], [128], [256]]
model.proposal_generator.head.num_anchors = 3
model.proposal_generator.pre_nms_topk = (1000, 300)
model.proposal_generator.post_nms_topk = (500, 100)
model.roi_heads.box_head.fc_dims = [256, 256]
model.roi_heads.box_predictor.input_shape.channels = 256
model.roi_heads.mask_head.conv_dims = [64, 64, 64, 64]

dataloader.train.mapper.augmentations[0].short_edge_length = (256, 288, 320, 352, 384)
dataloader.train.mapper.augmentations[0].max_size = 640
dataloader.train.total_batch_size = 32
dataloader.test.mapper.augmentations[0].short_edge_length = 320
dataloader.test.mapper.augmentations[0].max_size = 512

optimizer.lr = linear_lr(1e-3, images=32)
train.output_dir = "output/coco/mask_rcnn_mobile"
train.max_iter = 132000
train.clip_grad_norm = 5.0
train.ema.enabled = True
train.ema.decay = 0.9998
train.checkpointer.period = 5000
train.eval_period = 10000
train.best.metric = "segm/AP"
