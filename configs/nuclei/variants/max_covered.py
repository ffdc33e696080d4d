# The base config, whose detections are dropped where better ones cover half of their mask; trained as the base is.
from ..mask_rcnn_lite0_fpn import dataloader, dataset, lr_multiplier, model, optimizer, train

model.max_covered = 0.5

train.output_dir = "output/nuclei_max_covered"
