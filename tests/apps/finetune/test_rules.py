"""What follows from a data set: each decision is in the config and has its figure, and changes with the data."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from maskrcnn_plus.apps.finetune import rules
from maskrcnn_plus.apps.finetune.plan import Plan
from maskrcnn_plus.data.statistics import PixelStatistics, Statistics

CROP = "dataloader.train.mapper.mapper.augmentations.0"
TURN = "dataloader.train.mapper.mapper.augmentations.2.prob"


def pixels(**changes):
    """8-bit grey images that use their range."""
    values = {
        "num_images": 40,
        "unreadable": [],
        "channels": Counter({1: 40}),
        "dtypes": Counter({"uint8": 40}),
        "intensity": np.tile([5.0, 250.0], (40, 1)),
        "dark_background": 1.0,
        "mean_saturation": 0.0,
    }
    return PixelStatistics(**values | changes)


def data(
    diameter=30.0,
    per_image=20,
    size=(512, 512),
    aspect=1.0,
    overlap=0.0,
    classes=("cell",),
    images=40,
    covered=0.0,
    **pixel,
):
    """Statistics of equal images with round objects."""
    rng = np.random.default_rng(0)
    count = images * per_image
    diameters = diameter * np.exp(rng.normal(0, 0.2, count))
    widths = diameters * np.sqrt(aspect) * np.exp(rng.normal(0, 0.1, count))
    index = rng.integers(len(classes), size=count)
    counts = Counter(classes[k] for k in index)
    return Statistics(
        class_names=list(classes),
        num_images=images,
        num_objects=count,
        num_negatives=0,
        num_crowds=0,
        class_counts={name: counts[name] for name in classes},
        images_per_class=dict.fromkeys(classes, images),
        image_sizes=np.tile(size, (images, 1)),
        objects_per_image=np.full(images, per_image),
        box_sizes=np.stack([widths, diameters**2 / widths], axis=1),
        areas=(np.pi / 4 * diameters**2).astype(np.int64),
        classes=index,
        image_index=np.repeat(np.arange(images), per_image),
        box_overlap=np.full(count, overlap),
        covered=np.full(count, covered),
        pixels=pixels(**pixel),
    )


def decide(statistics, *overrides):
    """The plan of all rules."""
    plan = Plan("common/any_data", overrides)
    for rule in rules.RULES:
        rule(plan, statistics)
    return plan


@pytest.mark.parametrize(("diameter", "scale"), [(10, 3.2), (16, 2.0), (32, 1.0), (60, 1.0), (216, 0.5), (2, 4.0)])
def test_objects_are_brought_to_a_size_that_the_network_sees_well(diameter, scale):
    plan = decide(data(diameter))
    assert plan.get("dataset.scale") == pytest.approx(scale, rel=0.05)
    low, high = plan.get(f"{CROP}.scale")
    assert low < plan.get("dataset.scale") < high


@pytest.mark.parametrize(("diameter", "scale"), [(14, 2.0), (28, 1.0), (76, 0.37), (280, 0.1), (2, 4.0)])
def test_objects_get_the_diameter_that_the_weights_have_learned(diameter, scale):
    plan = Plan("common/any_data", [])
    plan.take_model("nuclei/generalist")
    assert plan.diameter == 28
    rules.scale(plan, data(diameter))
    assert plan.get("dataset.scale") == pytest.approx(scale, rel=0.05)
    assert "median of 28, which the weights have learned" in plan.lines()[0]
    assert decide(data(60), "dataset.scale=3.0").get("dataset.scale") == 3.0


def test_small_objects_among_large_ones_are_not_shrunk_away():
    mixed = data(200)
    sizes = mixed.box_sizes.copy()
    sizes[:80] = 12
    mixed = dataclasses.replace(mixed, box_sizes=sizes, areas=(np.pi / 4 * sizes.prod(axis=1)).astype(np.int64))
    assert decide(mixed).get("dataset.scale") * 12 >= 10.9


def test_crops_grow_with_the_objects_up_to_the_image():
    sizes = [decide(data(diameter, size=(2000, 2000))).get(f"{CROP}.size") for diameter in (20, 60, 90)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 256 < sizes[-1]
    assert all(size % 64 == 0 for size in sizes)
    assert decide(data(60, size=(96, 96))).get(f"{CROP}.size") == 128


def test_large_objects_need_no_fine_map():
    assert decide(data(40)).get("model.backbone.in_features")[0] == "res2"
    plan = decide(data(90))
    assert plan.get("model.backbone.in_features") == ["res3", "res4", "res5"]
    strides = plan.get("model.proposal_generator.anchor_generator.strides")
    assert len(plan.get("model.proposal_generator.anchor_generator.sizes")) == len(strides) == 4
    assert len(plan.get("model.roi_heads.mask_pooler.scales")) == len(plan.get("model.roi_heads.mask_in_features"))


@pytest.mark.parametrize(("diameter", "boxes"), [(20.0, 112), (120.0, 224)])
def test_masks_are_pooled_with_as_many_cells_as_they_have(diameter, boxes):
    plan = decide(data(diameter=diameter), "dataset.scale=1.0")
    assert plan.get("model.roi_heads.box_pooler.canonical_box_size") == boxes
    assert plan.get("model.roi_heads.mask_pooler.canonical_box_size") == 224


def test_limits_follow_the_fullest_image():
    assert decide(data(per_image=20)).get("dataset.max_objects") == 100
    plan = decide(data(12, per_image=400))
    assert plan.get("dataset.max_objects") == 600
    assert plan.get("model.proposal_generator.post_nms_topk")[1] >= 1200


def test_rois_follow_the_density():
    plans = [decide(data(12, per_image=count)) for count in (5, 100, 400, 4000)]
    rois = [plan.get("model.roi_heads.batch_size_per_image") for plan in plans]
    assert rois == sorted(rois)
    assert (rois[0], rois[-1]) == (64, 512)
    promised = [any("at least four RoIs for each" in line for line in plan.lines()) for plan in plans]
    assert (promised[0], promised[-1]) == (True, False)


def test_neighbours_that_overlap_are_no_duplicates():
    apart, across = decide(data(overlap=0.1)), decide(data(overlap=0.55))
    key = "model.roi_heads.box_predictors.2.test_nms_thresh"
    assert apart.get(key) == 0.3
    assert across.get(key) == 0.6
    assert across.get("dataloader.train.mapper.probability") == 0.0


@pytest.mark.parametrize(("covered", "most"), [(0.0, 0.5), (0.3, 0.5), (0.5, 0.7), (0.75, 1.0), (1.8, 1.0)])
def test_what_is_dropped_follows_from_what_true_masks_cover(covered, most):
    """Boxes of rods that cross overlap, their masks do not."""
    assert decide(data(overlap=0.55, covered=covered)).get("model.max_covered") == pytest.approx(most)


@pytest.mark.parametrize(
    ("statistics", "turned"),
    [
        (data(), True),
        (data(aspect=0.5), False),
        (data(per_image=3, mean_saturation=0.3, channels=Counter({3: 40})), False),
        (data(classes=tuple("abcdef"), mean_saturation=0.3, channels=Counter({3: 40})), False),
        (data(per_image=60, mean_saturation=0.3, channels=Counter({3: 40})), True),
    ],
)
def test_images_with_a_side_that_is_up_are_not_turned(statistics, turned):
    assert decide(statistics).get(TURN) == float(turned)


def test_orientation_can_be_said():
    plan = Plan("common/any_data", [])
    rules.orientation(plan, data(), chosen="upright")
    assert plan.get(TURN) == 0.0
    assert "as given" in plan.decisions[-1].reason


@pytest.mark.parametrize(
    ("changes", "stretched"),
    [
        ({}, False),
        ({"dtypes": Counter({"uint16": 40})}, True),
        ({"dtypes": Counter({"uint8": 39, "float32": 1})}, True),
        ({"intensity": np.tile([3.0, 90.0], (40, 1))}, True),
    ],
)
def test_deep_and_dim_images_are_stretched(changes, stretched):
    assert (decide(data(**changes)).get("dataset.percentiles") is not None) == stretched


def test_photographs_of_several_resolutions_are_brought_to_one():
    photos = data(per_image=3, mean_saturation=0.3, channels=Counter({3: 40}))
    sizes = np.array([[480, 640], [3000, 4000]] * 20)
    large = photos.image_index % 2 == 1
    boxes = photos.box_sizes * np.where(large, 3000 / 480, 1.0)[:, None]
    photos = dataclasses.replace(photos, image_sizes=sizes, box_sizes=boxes, areas=boxes.prod(axis=1).astype(np.int64))
    plan = decide(photos)
    assert plan.get("dataset.short_side") == np.median([480, 3000])
    seen = np.sqrt(boxes.prod(axis=1)) * rules.network_scale(plan, photos)
    assert np.median(seen[large]) == pytest.approx(np.median(seen[~large]), rel=0.1)
    assert plan.get(f"{CROP}.short_side") == plan.get("dataset.short_side")
    assert decide(data()).get("dataset.short_side") is None


def test_all_channels_are_used():
    assert decide(data(channels=Counter({5: 40}))).get("dataset.channels") == [0, 1, 2, 3, 4]
    assert decide(data(channels=Counter({3: 40}))).get("dataset.channels") is None


def test_rare_classes_are_repeated():
    both = data(classes=("a", "b"))
    assert decide(both).get("dataset.balance") == 0.0
    assert decide(dataclasses.replace(both, images_per_class={"a": 40, "b": 2})).get("dataset.balance") == 0.1


def test_objects_are_not_pasted_across_kinds_of_image():
    keys = ["dataloader.train.mapper.probability", "dataloader.train.mapper.within", "dataset.kinds"]
    assert [decide(data()).get(key) for key in keys] == [0.5, None, False]
    assert [decide(data(dark_background=0.5)).get(key) for key in keys] == [0.5, "kind", True]
    assert decide(data(dark_background=0.5, per_image=3)).get(keys[0]) == 0.0


def test_later_decisions_see_what_is_given():
    free, given = decide(data(14)), decide(data(14), "dataset.scale=1.0", f"{CROP}.size=192")
    assert given.get("dataset.scale") == 1.0
    assert given.get(f"{CROP}.size") == 192
    first = "model.proposal_generator.anchor_generator.sizes"
    assert given.get(first)[0][0] < free.get(first)[0][0]
    assert any("dataset.scale as given" in line for line in given.lines())


def test_every_decision_is_in_the_config_and_says_a_reason():
    for statistics in (data(), data(90, classes=("a", "b")), data(per_image=3, mean_saturation=0.3)):
        plan = decide(statistics)
        for decision in plan.decisions:
            assert len(decision.reason) > 10
            for key, value in decision.values.items():
                found = plan.get(key)
                assert found == value if not isinstance(value, list | tuple) else list(found) == list(value)
