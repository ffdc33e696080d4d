# The embedded demo: synthetic cells of three classes, rendered on the fly; trains in minutes on two CPU cores.
from detectron2.config import LazyCall as L

from maskrcnn_plus.data.synthetic import register_synthetic_cells

from ..common.dense_data import dataloader
from ..common.mask_rcnn_timm_fpn import model
from ..common.optim import AdamW as optimizer
from ..common.optim import one_cycle as lr_multiplier
from ..common.train import train

dataset = dict(
    num_train=400,
    num_val=40,
    thing_classes=["round", "spindle", "lobed"],
    num_classes="${maskrcnn_plus.num_classes:${dataset.thing_classes}}",
    max_objects=200,  # an image: the limit of detections
    percentiles=None,
    channels=None,  # of files that are neither grey nor RGB, by index or name: those of the network, such as [0, 0, 1]
    projection=None,  # of z stacks to images: "max" or "mean"
    scale=1.0,  # of images at inference
    score_threshold=0.5,
    on_error="raise",
)

dataloader.train.dataset.dataset.names = L(register_synthetic_cells)(
    name="cells_train", num_images="${dataset.num_train}", seed=0
)
dataloader.test.dataset.names = L(register_synthetic_cells)(name="cells_val", num_images="${dataset.num_val}", seed=1)

train.output_dir = "output/demo"
train.max_iter = 400
train.clip_grad_norm = 5.0
train.ema.enabled = True
train.ema.decay = 0.99
train.best.metric = "segm/AP50"
train.checkpointer.period = 100
