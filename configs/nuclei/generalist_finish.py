# The second part of the shipped model's training: from the weights of `nuclei/generalist` at the size of prediction, in
# larger crops and with milder augmentation.
from maskrcnn_plus.learning_rate import linear_lr

from .generalist import dataloader, dataset, lr_multiplier, model, optimizer, train

_crop = dataloader.train.mapper.mapper.augmentations[0]
_crop.update(size=256, diameter="${dataset.diameter}", jitter=(0.7, 1.45))

*_chances, _intensity = dataloader.train.mapper.augmentations
for _part, _prob in zip(_chances, (0.3, 0.08, 0.1, 0.1), strict=True):  # stain, colour, blur, light
    _part.prob = _prob
_intensity.update(
    brightness=(0.85, 1.2),
    contrast=(0.8, 1.2),
    gamma=(0.8, 1.25),
    saturation=(0.75, 1.3),
    invert=0.04,
    noise=(0.0, 5.0),
)

optimizer.lr = linear_lr(3e-4, images=4)
train.init_checkpoint = "output/nuclei_generalist/model_best.pth"
train.amp.enabled = True
train.max_iter = 4500  # an hour and a quarter on a core with AMX
train.eval_period = 4500
train.output_dir = "output/nuclei_generalist_finish"
