"""How a Mask R-CNN follows from a data set: each rule is a function of its statistics, with its reason.

Rules are called in the order of `RULES`. One sees what those before it, or the user, have decided.

Shape shorthand: N objects of the training images; "network" pixels are those after images are scaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from maskrcnn_plus.apps.finetune.anchors import choose_anchors
from maskrcnn_plus.apps.finetune.image_rules import (
    AUGMENTATIONS,
    colour,
    images_of,
    is_photographic,
    orientation,
    percentiles,
)
from maskrcnn_plus.apps.finetune.plan import Plan
from maskrcnn_plus.data.image_facts import KIND
from maskrcnn_plus.data.statistics import Statistics

SMALLEST, LARGEST = 32, 108
"""Median diameters, in network pixels, between which images keep their size."""

JITTER = (2 / 3, 4 / 3)
"""Of the scale in training, around that of inference."""

_CANONICAL = 224  # side of the boxes that Detectron2 pools from stride 16
_LARGE_BOX = 96  # side of boxes that are pooled from there too
_FEWEST_PIXELS = 11  # of the diameter of small objects, which shrinking must leave
_LARGEST_SCALE, _CROP_GRAIN, _LARGEST_CROP = 4.0, 64, 640


def scale(plan: Plan, data: Statistics) -> None:
    """How large the network sees the objects."""
    diameters = data.diameters
    sides = data.image_sizes.min(axis=1)
    reference = None
    if is_photographic(data) and sides.max() > 1.2 * sides.min():
        reference = int(np.median(sides))
        diameters = diameters * reference / sides[data.image_index]
        plan.decide(
            {"dataset.short_side": reference},
            f"The shorter sides of the photographs have {sides.min()} to {sides.max()} pixels: all are brought to the "
            "median.",
        )
    median, small = (float(np.percentile(diameters, share)) for share in (50, 5))
    if plan.diameter is not None:
        factor = min(plan.diameter / median, _LARGEST_SCALE)
        why = f"scaled towards a median of {plan.diameter:g}, which the weights have learned"
    elif median < SMALLEST:
        factor, why = min(SMALLEST / median, _LARGEST_SCALE), f"enlarged, so that their median is {SMALLEST}"
    elif median > LARGEST:
        factor = min(1.0, max(LARGEST / median, _FEWEST_PIXELS / small))
        why = f"shrunk towards a median of {LARGEST}, but none of the small ones below {_FEWEST_PIXELS}"
    else:
        factor, why = 1.0, "large enough to be seen, and small enough to be seen whole"
    plan.decide(
        {"dataset.scale": round(factor, 2)},
        f"The median diameter of the objects is {median:.0f} pixels (a twentieth is below {small:.0f}): {why}.",
    )
    factor = float(plan.get("dataset.scale"))
    plan.decide(
        {f"{AUGMENTATIONS}.0.scale": [round(factor * bound, 3) for bound in JITTER]},
        "In training the scale varies by a third.",
    )


def crop(plan: Plan, data: Statistics) -> None:
    """The part of an image that a training example is."""
    factor = network_scale(plan, data)
    longest = float(np.percentile((data.box_sizes * factor[:, None]).max(axis=1), 95))
    sides = data.image_sizes.max(axis=1) * _image_scale(plan, data)
    limit = -(-float(np.percentile(sides, 90)) * JITTER[1] // _CROP_GRAIN) * _CROP_GRAIN
    size = -(-2 * longest // _CROP_GRAIN) * _CROP_GRAIN
    size = int(min(max(size, 256), limit, _LARGEST_CROP))
    size = max(size, 128)
    plan.decide(
        {f"{AUGMENTATIONS}.0.size": size},
        f"A crop holds twice the longer side of 95% of the objects ({longest:.0f} network pixels), and at least 256 "
        "where images are as large.",
    )


def levels(plan: Plan, data: Statistics) -> None:
    """The finest map of the pyramid."""
    if plan.model_of:  # its weights have learned with theirs
        return
    boxes = data.box_sizes * network_scale(plan, data)[:, None]
    small = float(np.percentile(np.sqrt(boxes.prod(axis=1)), 5))
    if small >= 48:
        names = ["p3", "p4", "p5", "p6"]
        plan.decide(
            {
                "model.backbone.in_features": ["res3", "res4", "res5"],
                "model.proposal_generator.in_features": names,
                "model.proposal_generator.anchor_generator.strides": [8, 16, 32, 64],
                "model.roi_heads.box_in_features": names[:-1],
                "model.roi_heads.mask_in_features": names[:-1],
                "model.roi_heads.box_pooler.scales": [1 / 8, 1 / 16, 1 / 32],
                "model.roi_heads.mask_pooler.scales": [1 / 8, 1 / 16, 1 / 32],
            },
            f"95% of the boxes are larger than {small:.0f} network pixels: maps of stride 8 on are fine enough.",
        )


def anchors(plan: Plan, data: Statistics) -> None:
    """As few anchors as cover the boxes."""
    if plan.model_of:  # its weights have learned with theirs
        return
    generator = np.random.default_rng(0)
    jitter = np.exp(generator.uniform(*np.log(JITTER), size=len(data.box_sizes)))
    boxes = data.box_sizes * (network_scale(plan, data) * jitter)[:, None]
    strides = list(plan.get("model.proposal_generator.anchor_generator.strides"))
    found = choose_anchors(boxes, strides[0], len(strides))
    each = "1 anchor" if found.per_place == 1 else f"{found.per_place} anchors"
    plan.decide(
        {
            "model.proposal_generator.anchor_generator.sizes": found.sizes,
            "model.proposal_generator.anchor_generator.aspect_ratios": [found.ratios],
            "model.proposal_generator.head.num_anchors": found.per_place,
        },
        f"{each} a place: {found.coverage:.1%} of the training boxes overlap one with an IoU of at least 0.5.",
    )


def canonical_size(plan: Plan, data: Statistics) -> None:
    """The levels that boxes and masks are pooled from.

    A mask is pooled to 14 x 14: from a map on which its box has as many cells or more, as with Detectron2's 224 pixels,
    thin objects keep their shape. The 7 x 7 of a box may see more of what is around small ones.
    """
    if plan.model_of:  # its weights have learned with theirs
        return
    boxes = data.box_sizes * network_scale(plan, data)[:, None]
    median = float(np.median(np.sqrt(boxes.prod(axis=1))))
    size = 112 if median < _LARGE_BOX else _CANONICAL
    plan.decide(
        {
            "model.roi_heads.box_pooler.canonical_box_size": size,
            "model.roi_heads.mask_pooler.canonical_box_size": _CANONICAL,
        },
        f"The median box is {median:.0f} network pixels wide: boxes cover {size // 16} to {size // 8} cells of the map "
        f"that they are pooled from, masks {_CANONICAL // 16} to {_CANONICAL // 8}, where there is such a map.",
    )


def density(plan: Plan, data: Statistics) -> None:
    """Limits of objects and RoIs."""
    most = int(data.objects_per_image.max())
    limit = max(100, -(-int(1.5 * most) // 50) * 50)
    plan.decide(
        {"dataset.max_objects": limit}, f"The fullest image has {most} objects: half as many more may be found."
    )
    limit = int(plan.get("dataset.max_objects"))
    pre, post = list(plan.get("model.proposal_generator.pre_nms_topk")), 2 * limit
    if post > 1000:
        plan.decide(
            {
                "model.proposal_generator.post_nms_topk": [500, post],
                "model.proposal_generator.pre_nms_topk": [pre[0], max(2000, 2 * post)],
            },
            f"Proposals at inference: twice as many as objects may be found, {post}.",
        )
    window = int(plan.get(f"{AUGMENTATIONS}.0.size")) / _image_scale(plan, data)  # [I] pixels of the image
    share = np.minimum(window[:, None] / data.image_sizes, 1).prod(axis=1)
    crowd = float(np.percentile(data.objects_per_image * share, 95))
    rois = int(min(max(2 ** math.ceil(math.log2(max(4 * crowd, 1))), 64), 512))
    plan.decide(
        {"model.roi_heads.batch_size_per_image": rois},
        f"A crowded crop holds {crowd:.0f} objects: "
        + ("at least four RoIs for each" if rois >= 4 * crowd else f"{rois} RoIs at most")
        + " are learned from.",
    )


def overlap(plan: Plan, data: Statistics) -> None:
    """What keeps neighbours and drops duplicates."""
    high = float(np.percentile(data.box_overlap, 99))
    threshold = round(min(max(high + 0.05, 0.3), 0.6), 2)
    stages = plan.get("model.roi_heads.box_predictors")  # of a cascade, whose last one decides
    predictor = "box_predictor" if stages is None else f"box_predictors.{len(stages) - 1}"
    plan.decide(
        {f"model.roi_heads.{predictor}.test_nms_thresh": threshold},
        f"99% of the true boxes overlap no other of their class by an IoU above {high:.2f}: what overlaps a better "
        "detection by more than the threshold is a duplicate.",
    )
    hidden = float(np.percentile(data.covered, 99))
    most = round(max(0.5, hidden + 0.2), 2)
    most = 1.0 if most >= 0.9 else most
    plan.decide(
        {"model.max_covered": most},
        f"99% of the true masks are covered by others of their class by {hidden:.0%} at most: detections that better "
        + ("ones cover are kept." if most == 1 else f"ones cover by more than {most:.0%} are dropped."),
    )
    smallest = float(np.percentile(data.areas, 0.5))
    plan.decide(
        {"model.min_mask_area": int(min(smallest * 0.95, 0.1 * np.median(data.areas)))},
        f"One object in 200 has less than {smallest:.0f} pixels: smaller detections are specks.",
    )


def copy_paste(plan: Plan, data: Statistics) -> None:
    """Objects of one image in another."""
    dark, most = data.pixels.dark_background, float(np.median(data.objects_per_image))
    high = float(np.percentile(data.box_overlap, 99))
    if most < 5 or high > 0.5:
        what = f"the median image has {most:.0f} objects" if most < 5 else "objects lie over each other"
        plan.decide({"dataloader.train.mapper.probability": 0.0}, f"Nothing is pasted into images: {what}.")
        return
    plan.decide(
        {"dataloader.train.mapper.probability": 0.5, "dataloader.train.mapper.max_objects": 30},
        "Into every second image up to 30 objects of another are pasted, beside its own.",
    )
    if 0.1 < dark < 0.9:
        plan.decide(
            {"dataset.kinds": True, "dataloader.train.mapper.within": KIND},
            f"{dark:.0%} of the images have a dark background, the others a bright one: what is pasted comes from "
            "images of the same kind, grey or coloured, dark or bright.",
        )


def balance(plan: Plan, data: Statistics) -> None:
    """Rare classes."""
    shares = {name: count / data.num_images for name, count in data.images_per_class.items() if count}
    rarest = min(shares, key=shares.get)
    if len(shares) > 1 and shares[rarest] < 0.1:
        plan.decide(
            {"dataset.balance": 0.1},
            f"The class {rarest} is in {shares[rarest]:.1%} of the images: images with classes in less than 10% are "
            "repeated.",
        )


RULES: tuple[Callable[[Plan, Statistics], None], ...] = (
    images_of,
    percentiles,
    orientation,
    colour,
    scale,
    crop,
    levels,
    anchors,
    canonical_size,
    density,
    overlap,
    copy_paste,
    balance,
)


def _image_scale(plan: Plan, data: Statistics) -> np.ndarray:
    """Network pixels for a pixel of each image, float64 [I]."""
    factor, reference = float(plan.get("dataset.scale")), plan.get("dataset.short_side")
    sides = data.image_sizes.min(axis=1)
    return np.full(len(sides), factor) if reference is None else factor * reference / sides


def network_scale(plan: Plan, data: Statistics) -> np.ndarray:
    """Network pixels for a pixel at each object, float64 [N]."""
    return _image_scale(plan, data)[data.image_index]
