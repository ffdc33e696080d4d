# torchvision's maskrcnn_resnet50_fpn_v2 (Li et al., Benchmarking Detection Transfer Learning with Vision Transformers,
# 2021): batch norm in FPN and heads, two convolutions in the RPN, four and one linear layer in the box head.
from .torchvision_mask_rcnn_r50_fpn import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stem.norm = "BN"
model.backbone.bottom_up.stages.norm = "BN"
model.backbone.norm = "BN"
model.proposal_generator.head.conv_dims = [-1, -1]
model.roi_heads.box_head.conv_dims = [256, 256, 256, 256]
model.roi_heads.box_head.fc_dims = [1024]
model.roi_heads.box_head.conv_norm = "BN"
model.roi_heads.mask_head.conv_norm = "BN"

train.output_dir = "output/zoo/torchvision_mask_rcnn_r50_fpn_v2"
train.init_checkpoint = "torchvision://maskrcnn_resnet50_fpn_v2"
