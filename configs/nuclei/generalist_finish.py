# The second part of the shipped model's training: from the weights of `nuclei/generalist` at the size of prediction, in
# larger crops and with milder augmentation.
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from maskrcnn_plus.data import RandomIntensity, RandomRotate90
from maskrcnn_plus.data.appearance import RandomBlur, RandomColour, RandomIllumination, RandomStain
from maskrcnn_plus.data.diameter import RandomDiameterCrop

from .generalist import dataloader, dataset, lr_multiplier, model, optimizer, train

dataloader.train.mapper.mapper.augmentations = [
    L(RandomDiameterCrop)(size=256, diameter="${dataset.diameter}", jitter=(0.7, 1.45)),
    L(T.RandomFlip)(horizontal=True, vertical=False),
    L(RandomRotate90)(),
]
dataloader.train.mapper.augmentations = [
    L(T.RandomApply)(tfm_or_aug=L(RandomStain)(order="${model.input_format}"), prob=0.3),
    L(T.RandomApply)(tfm_or_aug=L(RandomColour)(hue=180, gain=(0.2, 1.0), grey=0.3), prob=0.08),
    L(T.RandomApply)(tfm_or_aug=L(RandomBlur)(sigma=(0.3, 1.5)), prob=0.1),
    L(T.RandomApply)(tfm_or_aug=L(RandomIllumination)(strength=0.5), prob=0.1),
    L(RandomIntensity)(
        brightness=(0.85, 1.2),
        contrast=(0.8, 1.2),
        gamma=(0.8, 1.25),
        saturation=(0.75, 1.3),
        invert=0.04,
        noise=(0.0, 5.0),
    ),
]

optimizer.lr = 3e-4
train.init_checkpoint = "output/nuclei_generalist/model_best.pth"
train.amp.enabled = True
train.max_iter = 4500  # an hour and a quarter on a core with AMX
train.eval_period = 4500
train.output_dir = "output/nuclei_generalist_finish"
