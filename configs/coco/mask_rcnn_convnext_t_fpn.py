# Mask R-CNN ConvNeXt-T-FPN with the recipe of Liu et al., "A ConvNet for the 2020s" (2022), which is Swin's with more
# drop path and no decay of biases and layer scales; its layer-wise decay of the learning rate is left out.
from .mask_rcnn_swin_t_fpn import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.name = "convnext_tiny.fb_in1k"
model.backbone.bottom_up.options = dict(drop_path_rate=0.4)

optimizer.params.overrides = dict(gamma=dict(weight_decay=0.0), bias=dict(weight_decay=0.0))

train.output_dir = "output/coco/mask_rcnn_convnext_t_fpn"
