# Mask R-CNN with FPN as in Detectron2's model zoo, with the fast RPN and RoIAlign. Needs a top-level `dataset` with
# `num_classes` and `max_objects`, the two numbers that everything else follows.
from maskrcnn_plus.config import detectron2_config
from maskrcnn_plus.mask_rcnn import MaskRCNNPlus
from maskrcnn_plus.roi import PyramidROIAlign
from maskrcnn_plus.rpn import BatchedRPN

model = detectron2_config("common/models/mask_rcnn_fpn.py").model
model._target_ = MaskRCNNPlus

model.proposal_generator._target_ = BatchedRPN

model.roi_heads.num_classes = "${dataset.num_classes}"
model.roi_heads.box_pooler._target_ = PyramidROIAlign
model.roi_heads.mask_pooler._target_ = PyramidROIAlign
model.roi_heads.box_predictor.test_topk_per_image = "${dataset.max_objects}"
