"""Whether a data set suffices, in sentences. The limits are rules of thumb of fine-tuning with pretrained weights."""

from __future__ import annotations

import numpy as np

from maskrcnn_plus.data.statistics import Statistics
from maskrcnn_plus.errors import listed

FEW_IMAGES, FEW_OBJECTS = 10, 100
"""To learn from: below, the result depends on which images they are."""

FEW_VAL_IMAGES, FEW_VAL_OBJECTS = 5, 50
"""To evaluate on: below, a figure says little."""

FEW_OF_CLASS = 20
"""Objects of a class to learn from."""

_LARGE = 2**24, 100  # pixels and objects
_IMBALANCE = 50  # times as many objects of the most frequent class as of another
_NAMED = 10


def is_large(pixels: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Which images, by their pixels [N] and objects [N], are better cut into tiles."""
    return (pixels > _LARGE[0]) & (objects > _LARGE[1])


def give_advice(train: Statistics, val: Statistics | None) -> list[str]:
    """What is scarce, with figures; one sentence that says so where nothing is.

    Args:
        train: of the images to learn from.
        val: of those to evaluate on; None where they are still to be drawn from the others.
    """
    said = []
    if train.num_images < FEW_IMAGES or train.num_objects < FEW_OBJECTS:
        said.append(
            f"{train.num_images} images with {train.num_objects} objects are few to learn from: expect that more "
            f"annotated images help most. From about {FEW_IMAGES} images and {FEW_OBJECTS} objects on a fine-tuning "
            "is worth its time."
        )
    if val is None and train.num_images == 1:
        said.append(
            "One image cannot be both learned from and judged by: annotate another. tools/finetune.py cuts a single "
            "one into tiles, where it is large enough, and judges by some of them."
        )
    elif val is None:
        part = max(round(0.2 * train.num_images), 1)
        said.append(
            f"There are no images for validation: a training will take some of the {train.num_images} for it, about "
            f"{part}."
        )
    elif val.num_images < FEW_VAL_IMAGES or val.num_objects < FEW_VAL_OBJECTS:
        said.append(
            f"{val.num_images} images with {val.num_objects} objects are few to evaluate on: figures of two trainings "
            f"that differ little say nothing. {FEW_VAL_IMAGES} images and {FEW_VAL_OBJECTS} objects are the least."
        )
    counts = train.class_counts
    rare = {name: count for name, count in counts.items() if 0 < count < FEW_OF_CLASS}
    if rare and len(counts) > 1:
        said.append(
            f"{_counted(rare)}: fewer than {FEW_OF_CLASS} objects to learn from. Annotate more, join classes, or leave "
            "them out."
        )
    missing = [name for name, count in counts.items() if count == 0]
    if missing and train.num_objects:
        said.append(f"No object to learn from has the class {listed(missing, _NAMED)}.")
    if val is not None and val.num_objects:
        unseen = [name for name, count in val.class_counts.items() if count == 0 and counts.get(name)]
        if unseen:
            said.append(f"No object for validation has the class {listed(unseen, _NAMED)}: it is not evaluated.")
    frequent = max(counts.values(), default=0)
    scarce = {name: count for name, count in counts.items() if count and frequent > _IMBALANCE * count}
    if scarce:
        most = max(counts, key=counts.get)
        said.append(
            f"{most} has {frequent:,} objects, {_counted(scarce)}: classes that are so much rarer need balanced "
            "sampling (dataset.balance)."
        )
    if train.num_images and train.num_negatives > 0.5 * train.num_images:
        said.append(
            f"{train.num_negatives} of {train.num_images} images have no object. Were they all annotated? Images "
            "without objects teach what is none, if that is so."
        )
    if train.num_objects and (tiny := float(np.mean(train.diameters < 8))) > 0.2:
        said.append(
            f"{tiny:.0%} of the objects are less than 8 px across, too small for most networks: a training should "
            "enlarge the images."
        )
    large = is_large(train.image_sizes.prod(axis=1), train.objects_per_image)
    if large.any():
        most = train.image_sizes[large].prod(axis=1).max() / 1e6
        said.append(
            f"{large.sum()} images are large and crowded, up to {most:.0f} megapixels: a training reads a whole image "
            "for each crop and evaluates it whole, which takes time and memory. tools/finetune.py cuts them into "
            "tiles, as tools/convert.py --tile 1024 does for other trainings."
        )
    if not said:
        said.append(
            f"{train.num_images} images with {train.num_objects:,} objects to learn from, {val.num_images} with "
            f"{val.num_objects:,} to evaluate on: nothing is scarce."
        )
    return said


def _counted(counts: dict[str, int]) -> str:
    return listed([f"{name} ({count})" for name, count in sorted(counts.items(), key=lambda item: item[1])], _NAMED)
