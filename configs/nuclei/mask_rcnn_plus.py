# For more exact masks of nuclei: copy-paste, an IoU-aware RPN, a cascade of box heads, soft mask targets; detections of
# whole groups are dropped where their members are found, and specks.
from maskrcnn_plus.roi import DenseCascadeROIHeads
from maskrcnn_plus.rpn import IoUAwareRPN, IoUAwareRPNHead

from .variants.cascade_box_head import dataset, lr_multiplier, model, optimizer, train
from .variants.copy_paste import dataloader

# Half of the RoIs that the box heads learn from are objects, a quarter in the base: the scores are higher. This and the
# least area are the best on training images.
dataset.score_threshold = 0.65

model.max_covered = 0.5
model.min_mask_area = 20  # pixels
model.proposal_generator._target_ = IoUAwareRPN
model.proposal_generator.head._target_ = IoUAwareRPNHead
model.roi_heads._target_ = DenseCascadeROIHeads
model.roi_heads.soft_mask_targets = True
model.roi_heads.positive_fraction = 0.5  # most proposals of a dense image are on objects
model.roi_heads.box_predictors[2].test_nms_thresh = 0.3  # nuclei touch, but do not hide each other

optimizer.fused = True
train.amp.enabled = True
train.max_iter = 6700  # an hour on 2 cores with bfloat16
train.eval_period = 3350
train.output_dir = "output/nuclei_plus"
