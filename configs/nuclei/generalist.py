# Nuclei of any kind in one model: fluorescence and stains, cultures and tissue, 8 and 16 bits, from 6 to 220 pixels.
# Each image is brought to one diameter of its nuclei, known from the annotations in training and estimated in
# prediction. `dataset.root` holds a folder of label images for each of the names below.
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from maskrcnn_plus.data import RandomIntensity, RandomRotate90
from maskrcnn_plus.data.appearance import RandomBlur, RandomColour, RandomIllumination, RandomStain
from maskrcnn_plus.data.diameter import RandomDiameterCrop, ScaleToDiameter
from maskrcnn_plus.data.mixture import register_mixture
from maskrcnn_plus.data.registration import register_label_maps

from .mask_rcnn_plus import dataloader, dataset, lr_multiplier, model, optimizer, train

dataset.root = "datasets"
dataset.diameter = 28.0  # of the median nucleus in prediction, in pixels of the network's input
del dataset.scale


def _sets(split):
    """The folders, each a data set."""
    return [
        L(register_label_maps)(
            name=f"{folder}_{split}",
            root="${dataset.root}/" + folder,
            split=split,
            thing_classes="${dataset.thing_classes}",
            on_error="${dataset.on_error}",
        )
        for folder in _REPEATS
    ]


# How often the images of each folder are seen in an epoch: as the kind of image deserves, not by their number.
_REPEATS = dict(nuclei_fluo=1, nuclei_rgb=3, nuclei_mixed=4, nuclei_tissue_fluo=5, nuclei_he=8, nuclei_16bit=6)
dataloader.train.dataset.dataset.names = L(register_mixture)(
    name="nuclei_train", sets=_sets("train"), repeats=list(_REPEATS.values()), kinds=True
)
dataloader.test.dataset.names = L(register_mixture)(name="nuclei_val", sets=_sets("val"))

dataloader.test.mapper.augmentations = [L(ScaleToDiameter)(diameter="${dataset.diameter}")]
dataloader.train.mapper.mapper.augmentations = [
    L(RandomDiameterCrop)(size=224, diameter=22.0, jitter=(0.6, 1.67)),  # less than in prediction: more context a crop
    L(T.RandomFlip)(horizontal=True, vertical=False),
    L(RandomRotate90)(),
]
dataloader.train.mapper.within = "kind"  # what is pasted comes from images that look alike
dataloader.train.mapper.augmentations = [
    L(T.RandomApply)(tfm_or_aug=L(RandomStain)(order="${model.input_format}"), prob=0.5),
    L(T.RandomApply)(tfm_or_aug=L(RandomColour)(hue=180, gain=(0.2, 1.0), grey=0.3), prob=0.2),
    L(T.RandomApply)(tfm_or_aug=L(RandomBlur)(sigma=(0.3, 1.5)), prob=0.2),
    L(T.RandomApply)(tfm_or_aug=L(RandomIllumination)(strength=0.5), prob=0.2),
    L(RandomIntensity)(
        brightness=(0.8, 1.25),
        contrast=(0.7, 1.3),
        gamma=(0.7, 1.4),
        saturation=(0.6, 1.4),
        invert=0.1,
        noise=(0.0, 8.0),
    ),
]

# Half as many masks a step as the base, for twice the steps: breadth comes from images.
model.roi_heads.batch_size_per_image = 64

dataset.max_objects = 1000
dataloader.evaluator = dataloader.evaluator[:1]  # COCO's AP takes long where there are thousands of detections
train.ema.decay = 0.999
train.amp.enabled = False  # the shipped weights learned in float32
train.max_iter = 6200  # three and a half hours on a core of an AMD EPYC
train.eval_period = 3100
train.output_dir = "output/nuclei_generalist"
