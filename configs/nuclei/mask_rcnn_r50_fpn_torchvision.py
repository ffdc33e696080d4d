# Fluorescence nuclei, fine-tuned from torchvision's Mask R-CNN of COCO. Body, FPN, RPN with its anchors, and the layers
# of the heads below the classes start from it.
from maskrcnn_plus.learning_rate import linear_lr

from ..zoo.torchvision_mask_rcnn_r50_fpn import model
from .mask_rcnn_lite0_fpn import dataloader, dataset, lr_multiplier, optimizer, train

model.mask_pasting = "detectron2"  # a shift of half a pixel is much for a nucleus
model.roi_heads.box_predictor.num_unused_classes = 0

optimizer.lr = linear_lr(1e-4, images=4)

train.output_dir = "output/nuclei_torchvision"
train.init_checkpoint = "torchvision://maskrcnn_resnet50_fpn"
