# torchvision's maskrcnn_resnet50_fpn: its weights, its pre-processing, its results. Training starts from the weights.
from detectron2.config import LazyCall as L

from maskrcnn_plus.config import detectron2_config
from maskrcnn_plus.data import InterpolateShortestEdge
from maskrcnn_plus.learning_rate import linear_lr
from maskrcnn_plus.mask_rcnn import MaskRCNNPlus
from maskrcnn_plus.roi import FastRCNNOutput, PyramidROIAlign
from maskrcnn_plus.rpn import BatchedRPN, TorchvisionAnchorGenerator

from ..common.coco_data import dataloader, dataset
from ..common.train import train

dataloader.train.mapper.augmentations[0] = L(InterpolateShortestEdge)(short_edge_length=800, max_size=1333)
dataloader.test.mapper.augmentations[0] = L(InterpolateShortestEdge)(short_edge_length=800, max_size=1333)

model = detectron2_config("common/models/mask_rcnn_fpn.py").model
model._target_ = MaskRCNNPlus
model.mask_pasting = "torchvision"
model.pixel_mean = [123.675, 116.28, 103.53]
model.pixel_std = [58.395, 57.12, 57.375]
model.input_format = "RGB"

model.backbone.bottom_up.stages.stride_in_1x1 = False
model.backbone.bottom_up.freeze_at = 2

model.proposal_generator._target_ = BatchedRPN
model.proposal_generator.anchor_generator = L(TorchvisionAnchorGenerator)(
    sizes=[[32], [64], [128], [256], [512]], aspect_ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]
)
model.proposal_generator.post_nms_topk = (2000, 1000)
model.proposal_generator.min_box_size = 1e-3
model.proposal_generator.smooth_l1_beta = 1 / 9

model.roi_heads.num_classes = "${dataset.num_classes}"
model.roi_heads.box_pooler._target_ = PyramidROIAlign
model.roi_heads.box_pooler.sampling_ratio = 2
model.roi_heads.box_pooler.pooler_type = "ROIAlign"
model.roi_heads.mask_pooler._target_ = PyramidROIAlign
model.roi_heads.mask_pooler.sampling_ratio = 2
model.roi_heads.mask_pooler.pooler_type = "ROIAlign"
model.roi_heads.box_predictor._target_ = FastRCNNOutput
# Of COCO's first plan, never annotated; none for other classes.
model.roi_heads.box_predictor.num_unused_classes = "${maskrcnn_plus.num_unused_coco_ids:${dataset.num_classes}}"
model.roi_heads.box_predictor.min_box_size = 1e-2
model.roi_heads.box_predictor.smooth_l1_beta = 1 / 9
model.roi_heads.box_predictor.test_topk_per_image = "${dataset.max_objects}"

optimizer = detectron2_config("common/optim.py").SGD
optimizer.lr = linear_lr(0.02, images=16)
lr_multiplier = detectron2_config("common/coco_schedule.py").lr_multiplier_2x

train.output_dir = "output/zoo/torchvision_mask_rcnn_r50_fpn"
train.init_checkpoint = "torchvision://maskrcnn_resnet50_fpn"
train.max_iter = 180000
train.checkpointer.period = 5000
train.eval_period = 5000
train.best.metric = "segm/AP"
