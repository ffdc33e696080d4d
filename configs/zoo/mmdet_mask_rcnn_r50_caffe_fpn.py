# MMDetection's mask-rcnn_r50-caffe_fpn_1x_coco: the stride in the first convolution of a block, BGR without scaling.
from .mmdet_mask_rcnn_r50_fpn import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.stride_in_1x1 = True  # style="caffe"
model.pixel_mean = [103.53, 116.28, 123.675]
model.pixel_std = [1.0, 1.0, 1.0]
model.input_format = "BGR"

train.output_dir = "output/zoo/mmdet_mask_rcnn_r50_caffe_fpn"
train.init_checkpoint = "https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/mask_rcnn_r50_caffe_fpn_1x_coco/mask_rcnn_r50_caffe_fpn_1x_coco_bbox_mAP-0.38__segm_mAP-0.344_20200504_231812-0ebd1859.pth"
