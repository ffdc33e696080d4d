# Fluorescence nuclei: dense, tiny, touching. `dataset.root` holds images/, labels/ and splits.json.
from detectron2.config import LazyCall as L

from maskrcnn_plus.data.registration import register_label_maps

from ..common.dense_data import dataloader
from ..common.mask_rcnn_timm_fpn import model
from ..common.optim import AdamW as optimizer
from ..common.optim import one_cycle as lr_multiplier
from ..common.train import train

dataset = dict(
    root="datasets/nuclei",
    thing_classes=["nucleus"],
    num_classes="${maskrcnn_plus.num_classes:${dataset.thing_classes}}",
    max_objects=500,  # an image: the limit of detections
    percentiles=[1.0, 99.8],  # of an image's pixels, mapped to 0..255
    channels=None,  # of files that are neither grey nor RGB, by index or name: those of the network, such as [0, 0, 1]
    projection=None,  # of z stacks to images: "max" or "mean"
    scale=1.5,  # of images at inference
    score_threshold=0.5,  # least score of a detection, of MatchingEvaluator and tools/predict.py
    negatives=False,  # whether images without objects are trained on
    balance=0.0,  # images with a class that is in less than this part of them are repeated
    on_error="raise",  # what a bad image or annotation does: "raise" or "skip"
)

dataloader.train.dataset.dataset.names = L(register_label_maps)(
    name="nuclei_train",
    root="${dataset.root}",
    split="train",
    thing_classes="${dataset.thing_classes}",
    on_error="${dataset.on_error}",
)
dataloader.test.dataset.names = L(register_label_maps)(
    name="nuclei_val",
    root="${dataset.root}",
    split="val",
    thing_classes="${dataset.thing_classes}",
    on_error="${dataset.on_error}",
)

train.output_dir = "output/nuclei"
train.max_iter = 2600
train.clip_grad_norm = 5.0
train.ema.enabled = True
train.ema.decay = 0.998
train.best.metric = "matching/mAP"
train.eval_period = 1300
