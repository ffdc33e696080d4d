# Mask scoring (Huang et al., 2019): detections are ranked by the predicted IoU of their masks as well.
from detectron2.config import LazyCall as L

from maskrcnn_plus.mask_heads import MaskIoUHead, MaskScoringHead

from ..mask_rcnn_lite0_fpn import dataloader, dataset, lr_multiplier, model, optimizer, train

model.roi_heads.mask_head.num_classes = "${dataset.num_classes}"  # the base's is relative to roi_heads
model.roi_heads.mask_head = L(MaskScoringHead)(
    mask_head=model.roi_heads.mask_head,
    mask_iou_head=L(MaskIoUHead)(
        input_shape="${..mask_head.input_shape}",
        num_classes="${dataset.num_classes}",
        conv_dims=[96, 96, 96, 96],
        fc_dims=[512, 512],
    ),
    loss_weight=1.0,
)

train.output_dir = "output/nuclei_mask_scoring"
