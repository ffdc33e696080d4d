"""CopyPasteMapper against a loop over pixels: what is covered, what is left of it, what is dropped, who is pasted."""

import copy
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from scipy import ndimage

from maskrcnn_plus.data.copy_paste import CopyPasteMapper, composite
from maskrcnn_plus.masks.label_masks import LabelMapMasks

KINDS = ["label", "bit", "polygon"]


def seed_generator(seed):
    np.random.seed(seed)  # noqa: NPY002 - the generator that the stream seeds


def rectangles(rng, number, size, side=9):
    """A label image of rectangles that touch and hide each other, as 1, 2, ..., all of them visible."""
    labels = np.zeros(size, np.int32)
    for label in range(1, number + 1):
        height, width = rng.integers(1, side, 2)
        y, x = rng.integers(0, np.array(size) - (height, width) + 1)
        labels[y : y + height, x : x + width] = label
    _, labels = np.unique(np.append(0, labels), return_inverse=True)
    return labels[1:].reshape(size)


def make_example(labels, kind, first_class, rng, dtype=torch.uint8):
    """A training example with the objects of a label image, whose classes count from `first_class`."""
    number = int(labels.max(initial=0))
    masks = torch.tensor(np.array([labels == label for label in range(1, number + 1)])).reshape(number, *labels.shape)
    if kind == "label":
        # Scattered numbers, and pixels of an object that the mapper has dropped.
        numbers = np.append(0, rng.choice(2**31 - 1, number + 1, replace=False) + 1)
        shown = numbers[labels]
        shown[(labels == 0) & (rng.random(labels.shape) < 0.1)] = numbers[-1]
        gt_masks = LabelMapMasks(torch.tensor(shown), torch.tensor(numbers[1 : number + 1]))
    elif kind == "bit":
        gt_masks = BitMasks(masks)
    else:  # one square a pixel
        squares = [[[x, y, x + 1, y, x + 1, y + 1, x, y + 1] for y, x in mask.nonzero().tolist()] for mask in masks]
        gt_masks = PolygonMasks([[np.array(square, float) for square in each] for each in squares])
    instances = Instances(labels.shape)
    instances.gt_boxes = BitMasks(masks).get_bounding_boxes()
    instances.gt_classes = torch.arange(number) + first_class
    instances.gt_masks = gt_masks
    image = torch.tensor(rng.integers(0, 256, (3, *labels.shape)), dtype=dtype)
    return {"image": image, "instances": instances, "image_id": first_class}


def paste(example, source, seed=0, **options):
    """What CopyPasteMapper makes of two examples."""
    examples = {"below": example, "above": source}
    options = {"probability": 1, "min_area": 0, **options}
    mapper = CopyPasteMapper(lambda entry: copy.deepcopy(examples[entry["name"]]), [{"name": "above"}], **options)
    seed_generator(seed)
    return mapper({"name": "below"})


def bits(masks):
    """Masks of any kind as a list of bool arrays."""
    return list((masks.to_bitmasks() if isinstance(masks, LabelMapMasks) else masks).tensor.numpy())


def classes(example):
    return example["instances"].gt_classes.tolist()


def check_against_loop(result, example, source, labels, source_labels, min_visible=0.0, min_area=0):
    """Compare with a loop over all pixels; the source's objects have the classes 100, 101, ..."""
    pasted = [number - 100 for number in classes(result) if number >= 100]
    assert len(set(pasted)) == len(pasted) > 0
    height, width = labels.shape
    image = example["image"].clone()
    visible = {}
    for y, x in itertools.product(range(height), range(width)):
        above = source_labels[y, x] - 1
        if above in pasted:
            image[:, y, x] = source["image"][:, y, x]
            visible.setdefault(100 + above, []).append((y, x))
        elif labels[y, x]:
            visible.setdefault(labels[y, x] - 1, []).append((y, x))
    for label in range(labels.max(initial=0)):
        before, after = int((labels == label + 1).sum()), len(visible.get(label, ()))
        if after < before and (after < min_area or after < min_visible * before):
            visible.pop(label, None)

    instances = result["instances"]
    assert torch.equal(result["image"], image)
    assert result["image"].dtype == example["image"].dtype
    assert classes(result) == sorted(number for number in visible if number < 100) + [100 + number for number in pasted]
    for number, mask, box in zip(classes(result), bits(instances.gt_masks), instances.gt_boxes.tensor, strict=True):
        assert list(zip(*map(np.ndarray.tolist, np.nonzero(mask)), strict=True)) == visible[number]
        rows, columns = zip(*visible[number], strict=True)
        assert box.tolist() == [min(columns), min(rows), max(columns) + 1, max(rows) + 1]
    assert np.sum(bits(instances.gt_masks), axis=0).max() == 1  # no pixel belongs to two objects
    assert instances.image_size == labels.shape
    assert instances.gt_boxes.tensor.dtype == torch.float32
    assert instances.gt_classes.dtype == torch.int64


@pytest.mark.parametrize(("kind", "source_kind"), list(itertools.product(KINDS, KINDS)))
@pytest.mark.parametrize("options", [{}, {"min_visible": 0.6}, {"min_area": 12}])
def test_occlusion_is_that_of_a_loop_over_pixels(kind, source_kind, options):
    dropped = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        labels, source_labels = rectangles(rng, 9, (20, 23)), rectangles(rng, 9, (20, 23))
        example, source = make_example(labels, kind, 0, rng), make_example(source_labels, source_kind, 100, rng)
        result = paste(example, source, seed, **options)
        check_against_loop(result, example, source, labels, source_labels, **options)
        label_maps = kind == source_kind == "label"
        assert type(result["instances"].gt_masks) is (LabelMapMasks if label_maps else BitMasks)
        dropped += labels.max() - sum(number < 100 for number in classes(result))
    assert dropped > 0


@pytest.mark.parametrize(("kind", "source_kind"), [("label", "label"), ("bit", "label"), ("label", "polygon")])
@pytest.mark.parametrize("max_overlap", [0.0, 0.3])
def test_no_object_loses_more_than_max_overlap(kind, source_kind, max_overlap):
    numbers = Counter()
    rng = np.random.default_rng(5)
    labels, source_labels = rectangles(rng, 7, (30, 33)), rectangles(rng, 9, (30, 33))
    example, source = make_example(labels, kind, 0, rng), make_example(source_labels, source_kind, 100, rng)
    for seed in range(40):
        result = paste(example, source, seed, max_overlap=max_overlap)
        check_against_loop(result, example, source, labels, source_labels)
        assert classes(result)[: labels.max()] == list(range(labels.max()))
        losses = []
        for label, mask in enumerate(bits(result["instances"].gt_masks)[: labels.max()], start=1):
            losses.append(1 - mask.sum() / (labels == label).sum())
        assert max(losses) <= max_overlap
        numbers[len(classes(result)) - labels.max()] += 1
        numbers["overlapping"] += max(losses) > 0
    free = sum(not labels[source_labels == label].any() for label in range(1, source_labels.max() + 1))
    assert 0 < free < source_labels.max()
    if max_overlap == 0:  # who fits does not depend on the order
        assert set(numbers) - {"overlapping"} == set(range(1, free + 1))
        assert numbers["overlapping"] == 0
    else:
        assert numbers["overlapping"] > 5


def test_nothing_is_pasted_where_nothing_fits():
    rng = np.random.default_rng(0)
    example = make_example(np.ones((8, 8), np.int32), "label", 0, rng)
    source = make_example(np.eye(8, dtype=np.int32), "label", 100, rng)
    result = paste(example, source, max_overlap=0.1)
    assert classes(result) == [0]
    assert torch.equal(result["image"], example["image"])
    assert classes(paste(example, source, max_overlap=0.125)) == [0, 100]


@pytest.mark.parametrize("kind", ["label", "bit"])
def test_several_pasted_objects_together_stay_within_max_overlap(kind):
    rng = np.random.default_rng(0)
    dots = np.arange(1, 11, dtype=np.int32).reshape(2, 5)
    example, source = (make_example(each, kind, first, rng) for each, first in ((dots * 0 + 1, 0), (dots, 100)))
    numbers = {len(classes(paste(example, source, seed, max_overlap=0.35))) - 1 for seed in range(30)}
    assert numbers == {1, 2, 3}


def test_number_and_choice_are_uniform():
    rng = np.random.default_rng(0)
    labels = np.arange(1, 5, dtype=np.int32).repeat(4)[None].repeat(3, 0)
    example, source = make_example(labels * 0, "label", 0, rng), make_example(labels, "label", 100, rng)
    subsets = Counter(tuple(sorted(classes(paste(example, source, seed, max_objects=3)))) for seed in range(900))
    lengths = Counter()
    for subset, count in subsets.items():
        lengths[len(subset)] += count
    assert sorted(lengths) == [1, 2, 3]
    assert all(abs(count - 300) < 5 * (900 * 1 / 3 * 2 / 3) ** 0.5 for count in lengths.values())
    assert len(subsets) == 4 + 6 + 4
    singles = [subsets[(100 + i,)] for i in range(4)]
    assert all(abs(count - 75) < 5 * 75**0.5 for count in singles)
    everything = {tuple(sorted(classes(paste(example, source, seed)))) for seed in range(60)}
    assert (100, 101, 102, 103) in everything


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_objects(kind):
    rng = np.random.default_rng(0)
    labels = rectangles(rng, 5, (12, 15))
    empty = make_example(np.zeros((12, 15), np.int32), kind, 0, rng)
    source = make_example(labels, kind, 100, rng)
    check_against_loop(paste(empty, source), empty, source, labels * 0, labels)
    check_against_loop(paste(empty, source, max_overlap=0), empty, source, labels * 0, labels)

    example = make_example(labels, kind, 0, rng)
    for below in (example, empty):
        result = paste(below, empty)
        assert torch.equal(result["image"], below["image"])
        assert classes(result) == classes(below)
        assert type(result["instances"].gt_masks) is type(below["instances"].gt_masks)


@pytest.mark.parametrize("kind", KINDS)
def test_single_pixels_and_what_is_all_covered(kind):
    rng = np.random.default_rng(0)
    dots, block = np.zeros((2, 6, 7), np.int32)
    dots[2, 3], dots[5, 6] = 1, 2
    block[1:4, 2:5] = 1
    below, above = make_example(dots, kind, 0, rng), make_example(block, kind, 100, rng)
    result = paste(below, above)
    check_against_loop(result, below, above, dots, block)
    assert classes(result) == [1, 100]  # the dot below the block has gone

    below, above = make_example(block, kind, 0, rng), make_example(dots, kind, 100, rng)
    areas = set()
    for seed in range(8):
        result = paste(below, above, seed)
        check_against_loop(result, below, above, block, dots)
        areas.add((100 in classes(result), bits(result["instances"].gt_masks)[0].sum()))
    assert areas == {(True, 8), (False, 9)}
    assert classes(paste(below, above, min_area=2)) == [0]  # too small to be pasted
    full = make_example(np.ones((6, 7), np.int32), kind, 100, rng)
    assert classes(paste(below, full)) == [100]
    assert torch.equal(paste(below, full)["image"], full["image"])


def test_small_objects_that_lose_nothing_stay():
    rng = np.random.default_rng(0)
    dots, block = np.zeros((2, 6, 7), np.int32)
    dots[5, 6] = dots[0, 0] = 1
    block[0:4, 0:5] = 1
    below, above = make_example(dots, "label", 0, rng), make_example(block, "label", 100, rng)
    assert classes(paste(below, above, min_visible=0.5)) == [0, 100]
    assert classes(paste(below, above, min_visible=0.51)) == [100]
    assert classes(paste(below, above, min_area=2)) == [100]
    dots[0, 0] = 0
    assert classes(paste(make_example(dots, "label", 0, rng), above, min_area=4, min_visible=1)) == [0, 100]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(9, 30), (30, 9), (8, 8), (25, 25)])
def test_second_image_of_another_size_is_cut_or_filled(kind, size):
    rng = np.random.default_rng(3)
    labels, source_labels = rectangles(rng, 6, (18, 19)), rectangles(rng, 30, size, side=5)
    example, source = make_example(labels, kind, 0, rng), make_example(source_labels, kind, 100, rng)
    fitted, canvas = np.zeros((18, 19), np.int32), torch.zeros(3, 18, 19, dtype=torch.uint8)
    height, width = min(size[0], 18), min(size[1], 19)
    fitted[:height, :width] = source_labels[:height, :width]
    canvas[:, :height, :width] = source["image"][:, :height, :width]
    for seed in range(4):
        check_against_loop(paste(example, source, seed), example, {"image": canvas}, labels, fitted)


def test_masks_that_share_a_label_or_overlap_stay_as_annotated():
    rng = np.random.default_rng(0)
    labels = rectangles(rng, 4, (12, 12))
    twice = make_example(labels, "label", 100, rng)
    twice["instances"] = Instances.cat([twice["instances"], twice["instances"]])
    below = make_example(rectangles(rng, 4, (12, 12)), "label", 0, rng)
    for seed in range(8):
        instances = paste(below, twice, seed)["instances"]
        for number, mask in zip(instances.gt_classes.tolist(), bits(instances.gt_masks), strict=True):
            assert number < 100 or np.array_equal(mask, labels == number - 99)

    overlapping = make_example(labels, "bit", 100, rng)
    overlapping["instances"].gt_masks.tensor[:, 3:6, 2:9] = True
    instances = paste(below, overlapping, seed=3)["instances"]
    assert sum(number >= 100 for number in instances.gt_classes) > 1
    for number, mask in zip(instances.gt_classes.tolist(), bits(instances.gt_masks), strict=True):
        if number >= 100:
            assert np.array_equal(mask, overlapping["instances"].gt_masks.tensor[number - 100].numpy())
        else:
            assert not mask[3:6, 2:9].any()


@pytest.mark.parametrize("sigma", [0.0, 1.0, 1.5])
def test_blending_is_that_of_a_smoothed_mask(sigma):
    rng = np.random.default_rng(0)
    below, above = torch.tensor(rng.uniform(0, 255, (2, 3, 21, 25)), dtype=torch.float32)
    covering = rectangles(rng, 3, (21, 25)) > 0
    weight = ndimage.gaussian_filter(covering.astype(float), sigma, mode="mirror") if sigma else covering
    expected = weight * above.double().numpy() + (1 - weight) * below.double().numpy()
    mixed = composite(below, above, torch.tensor(covering), sigma)
    assert np.abs(mixed.numpy() - expected).max() < 1e-3
    whole = composite(below.byte(), above.byte(), torch.tensor(covering), sigma)
    assert whole.dtype == torch.uint8
    assert np.abs(whole.numpy() - expected).max() < 1.6  # both images and the mixture are whole numbers
    result = paste(
        make_example(np.zeros((9, 9), int), "label", 0, rng),
        make_example(np.pad(np.ones((3, 3), int), 3), "label", 100, rng),
        blend_sigma=sigma,
    )
    assert result["instances"].gt_masks.area().tolist() == [9]  # the mask has hard edges


def test_images_of_two_types():
    rng = np.random.default_rng(0)
    labels = rectangles(rng, 4, (9, 10))
    below, above = (make_example(labels, "label", first, rng, dtype=torch.float32) for first in (0, 100))
    above["image"] += 0.25
    check_against_loop(paste(below, above), below, above, labels, labels)
    below["image"] = below["image"].byte()
    rounded = {"image": above["image"].round().byte()}
    check_against_loop(paste(below, above), below, rounded, labels, labels)


def test_all_images_are_pasted_from_and_stay_as_they_are():
    drawn = Counter()

    def spoil(entry):
        drawn[entry["image_id"]] += 1
        entry["image_id"] = None
        return make_example(np.ones((4, 4), int), "bit", 0, np.random.default_rng(0))

    mapper = CopyPasteMapper(spoil, [{"image_id": i} for i in range(5)], probability=1)
    seed_generator(0)
    for _ in range(200):
        mapper({"image_id": "own"})
    assert drawn.pop("own") == 200
    assert sorted(drawn) == list(range(5))
    assert all(abs(count - 40) < 4 * (200 * 0.2 * 0.8) ** 0.5 for count in drawn.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": []}, "list of dataset dicts"),
        ({"dataset": "nuclei_train"}, "list of dataset dicts.*'nuclei_train'"),
        ({"probability": 1.5}, "probability must be in 0..1, got 1.5"),
        ({"max_overlap": -0.1}, "max_overlap"),
        ({"min_visible": float("nan")}, "min_visible"),
        ({"max_objects": 0}, "max_objects"),
        ({"max_objects": 2.5}, "max_objects"),
        ({"min_area": -1}, "min_area"),
        ({"blend_sigma": float("inf")}, "blend_sigma"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        CopyPasteMapper(**{"mapper": dict, "dataset": [{}], **options})


def test_examples_that_cannot_be_pasted_are_named():
    example = make_example(np.ones((4, 4), int), "bit", 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="and sem_seg"):
        paste({**example, "sem_seg": torch.zeros(4, 4)}, example)
    more = copy.deepcopy(example)
    more["instances"].gt_keypoints = Boxes(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="gt_keypoints"):
        paste(example, more)
