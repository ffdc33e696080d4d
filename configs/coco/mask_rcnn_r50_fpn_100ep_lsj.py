# Mask R-CNN R50-FPN, 100 epochs from scratch with large-scale jitter: `new_baselines` of Detectron2's model zoo, with
# the fast RPN and RoIAlign. Batch norms take their statistics over all processes.
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from maskrcnn_plus.config import detectron2_config
from maskrcnn_plus.learning_rate import linear_lr

from ..common.coco_lsj_data import dataloader, dataset
from .mask_rcnn_r50_fpn_3x import model, optimizer, train

model.backbone.norm = "SyncBN"
model.backbone.bottom_up.freeze_at = 0
model.backbone.bottom_up.stem.norm = "SyncBN"
model.backbone.bottom_up.stages.norm = "SyncBN"
model.proposal_generator.head.conv_dims = [-1, -1]
model.roi_heads.box_head.conv_dims = [256, 256, 256, 256]
model.roi_heads.box_head.fc_dims = [1024]
# Heads may have no input at all, which PyTorch's own SyncBN does not support.
model.roi_heads.box_head.conv_norm = "naiveSyncBN_N"
model.roi_heads.mask_head.conv_norm = "naiveSyncBN_N"

# The model zoo's results of this model are those of its usual test size.
dataloader.test.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)]

optimizer.lr = linear_lr(0.1, images=64)
optimizer.weight_decay = 4e-5
lr_multiplier = detectron2_config("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py").lr_multiplier

train.output_dir = "output/coco/mask_rcnn_r50_fpn_100ep_lsj"
train.init_checkpoint = ""
train.max_iter = 184375
train.amp.enabled = True
train.ddp.fp16_compression = True
