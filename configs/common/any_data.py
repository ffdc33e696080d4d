# What a config of tools/finetune.py starts from: a folder of annotations of any format, and a Mask R-CNN with an
# IoU-aware RPN, a cascade of box heads, soft mask targets and copy-paste. The config sets what follows from the data.
from dataclasses import asdict

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from maskrcnn_plus.data import RandomRotate90, register_folder
from maskrcnn_plus.data.formats import ReadOptions

from ..nuclei.mask_rcnn_plus import dataloader, dataset, lr_multiplier, model, optimizer, train

del dataset.thing_classes
dataset.update(
    root="",
    format=None,  # of the annotations, by name; None finds it
    **asdict(ReadOptions()),  # how the annotations are read
    val=0.2,  # part of the images for validation where the folder has no such split
    split_of=None,  # weights whose images stay in training or validation as they were, where there is no such split
    thing_classes=None,  # those with objects
    short_side=None,  # pixels of the shorter side that images are brought to before `scale`; None leaves them
    negatives=True,
    kinds=False,  # whether objects are pasted between images of one kind alone (grey or coloured, dark or bright)
    on_error="skip",
)

_folder = dict(
    path="${dataset.root}",
    format="${dataset.format}",
    val="${dataset.val}",
    split_of="${dataset.split_of}",
    thing_classes="${dataset.thing_classes}",
    on_error="${dataset.on_error}",
    **{key: f"${{dataset.{key}}}" for key in asdict(ReadOptions())},
)
dataloader.train.dataset.dataset.names = L(register_folder)(
    name="${dataset.root}:train", split="train", kinds="${dataset.kinds}", **_folder
)
dataloader.test.dataset.names = L(register_folder)(name="${dataset.root}:val", split="val", **_folder)

for _mapper in (dataloader.train.mapper.mapper, dataloader.test.mapper):
    _mapper.label_maps = True

_crop, _flip, _, _intensity = dataloader.train.mapper.mapper.augmentations
_crop.short_side = dataloader.test.mapper.augmentations[0].short_side = "${dataset.short_side}"
dataloader.train.mapper.mapper.augmentations = [
    _crop,
    _flip,
    L(T.RandomApply)(tfm_or_aug=L(RandomRotate90)(), prob=1.0),
    _intensity,
]

train.best.metric = "segm/AP"
train.validation_loss = 32
train.patience = 4
train.output_dir = "output/mine"
