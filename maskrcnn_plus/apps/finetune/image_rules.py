"""What follows from what images are: channels, percentiles, which way they lie, and their colours."""

from __future__ import annotations

import math

import numpy as np

from maskrcnn_plus.apps.finetune.plan import Plan
from maskrcnn_plus.data.statistics import Statistics
from maskrcnn_plus.errors import listed

AUGMENTATIONS = "dataloader.train.mapper.mapper.augmentations"
"""Key of the list of `configs/common/any_data.py`."""

_ENOUGH_IMAGES = 8  # to know that objects are wider than high


def images_of(plan: Plan, data: Statistics) -> None:
    """Classes and channels."""
    counts = listed([f"{name} {count}" for name, count in data.class_counts.items()], 8)
    plan.decide(
        {"dataset.thing_classes": list(data.class_names)},
        f"{data.num_objects} objects in {data.num_images} training images: {counts}.",
    )
    channels = data.pixels.channels.most_common(1)[0][0]
    if channels not in (1, 3):
        plan.decide({"dataset.channels": list(range(channels))}, f"Images have {channels} channels: all are used.")


def percentiles(plan: Plan, data: Statistics) -> None:
    """What becomes black and white."""
    deep = [name for name in data.pixels.dtypes if name != "uint8"]
    dim = float(np.percentile(data.pixels.intensity[:, 1], 10))
    if deep:
        plan.decide(
            {"dataset.percentiles": [1.0, 99.8]},
            f"Images are {' and '.join(deep)}: the 1st and 99.8th percentile of each become black and white.",
        )
    elif dim < 160:
        plan.decide(
            {"dataset.percentiles": [1.0, 99.8]},
            f"Some 8-bit images are dim (a tenth reaches {dim:.0f} of 255): each is stretched between its percentiles.",
        )
    else:
        plan.decide(
            {"dataset.percentiles": None}, f"8-bit images use their range (nine tenths reach {dim:.0f}): left as is."
        )


def orientation(plan: Plan, data: Statistics, chosen: str | None = None) -> None:
    """Whether images are turned in training.

    Args:
        plan, data: see above.
        chosen: "any" or "upright" by the user; None guesses.
    """
    aspects = np.log(data.box_sizes[:, 0] / data.box_sizes[:, 1])
    counts = data.objects_per_image[data.objects_per_image > 0]
    of_images = np.add.reduceat(aspects, np.cumsum(counts) - counts) / counts  # objects of an image may lie alike
    mean, error = float(of_images.mean()), float(of_images.std() / math.sqrt(len(of_images)))
    lopsided = len(of_images) >= _ENOUGH_IMAGES and abs(mean) > max(0.05, 3 * error)
    kind = chosen or ("upright" if lopsided or is_photographic(data) else "any")
    why = f"objects are {math.exp(mean):.2f} times as wide as high in the mean"
    why = "as given" if chosen else f"they are photographs, and {why}" if is_photographic(data) else why
    if kind == "any":
        text = f"Images have no side that is up ({why}): they are turned by right angles and flipped in training."
    else:
        text = f"One side of the images is up ({why}): they are flipped sideways in training, and not turned."
    plan.decide({f"{AUGMENTATIONS}.2.prob": 1.0 if kind == "any" else 0.0}, text)


def is_photographic(data: Statistics) -> bool:
    """Whether images are photographs, whose objects are as large as the camera's resolution makes them.

    Colour images of many classes, or of few objects each; micrographs have one or two classes, of many objects.
    """
    is_sparse = float(np.median(data.objects_per_image)) < 5
    return data.pixels.mean_saturation > 0.02 and (len(data.class_names) >= 5 or is_sparse)


def colour(plan: Plan, data: Statistics) -> None:
    """Colours that vary."""
    saturation = data.pixels.mean_saturation
    if saturation > 0.02 and set(data.pixels.channels) <= {1, 3}:
        plan.decide(
            {f"{AUGMENTATIONS}.3.saturation": [0.7, 1.3]},
            f"Images are coloured (mean saturation {saturation:.2f}), which is varied by a third.",
        )
