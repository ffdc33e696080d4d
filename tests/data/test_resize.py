"""Resizing equals torchvision's to the bit, and moves image, labels and coordinates together."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from maskrcnn_plus.data import InterpolateShortestEdge
from maskrcnn_plus.data.resize import InterpolateTransform


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(0)  # noqa: NPY002 - Detectron2's augmentations draw from the global generator


def scenes():
    """Random images of random sizes with labels, and sizes whose scale is not a whole number of pixels in floats."""
    rng = np.random.default_rng(0)
    sizes = [(427, 640), (640, 427), (1, 1), (1, 90), (37, 200)]
    sizes += [tuple(rng.integers(20, 400, 2).tolist()) for _ in range(12)]
    for height, width in sizes:
        yield rng.integers(0, 256, (height, width, 3), dtype=np.uint8), rng.integers(0, 2, (height, width), np.int32)


@pytest.mark.parametrize(("length", "max_size"), [(160, 267), (800, 1333), (23, 1000), (123, 124)])
def test_equals_torchvision(length, max_size):
    theirs = GeneralizedRCNNTransform(length, max_size, [0.0] * 3, [1.0] * 3).eval()
    augmentation = InterpolateShortestEdge(length, max_size)
    for image, labels in scenes():
        if int(min(image.shape[:2]) * max_size / max(image.shape[:2])) == 0:
            continue  # torchvision fails where nothing is left of the shorter side
        height, width = image.shape[:2]
        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.1, 0.3, 0.7, 0.9]]) * torch.tensor([width, height] * 2)
        target = {"boxes": boxes, "masks": torch.from_numpy(labels)[None].to(torch.uint8)}
        expected, target = theirs.resize(torch.from_numpy(image).permute(2, 0, 1).float(), target)
        aug_input = T.AugInput(image)
        transform = augmentation(aug_input)
        assert aug_input.image.dtype == np.float32
        assert np.array_equal(aug_input.image, expected.permute(1, 2, 0).numpy())
        resized_labels = transform.apply_segmentation(labels)
        assert resized_labels.dtype == np.int32
        assert np.array_equal(resized_labels, target["masks"][0].numpy())
        assert np.allclose(transform.apply_box(boxes.numpy()), target["boxes"].numpy(), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_image_of_the_right_size_is_a_copy(dtype):
    image = np.arange(2 * 5 * 3).reshape(2, 5, 3).astype(dtype)
    resized = InterpolateTransform(2, 5, 2, 5).apply_image(image)
    assert resized.dtype == np.float32
    assert np.array_equal(resized, image)
    assert not np.shares_memory(resized, image)


def test_sizes_are_rounded_down_and_by_torchvisions_formula():
    image = np.zeros((427, 640, 3), np.uint8)
    transform = InterpolateShortestEdge(800).get_transform(image)
    assert transform.new_size == (int(427 * (800 / 427)), int(640 * (800 / 427)))
    assert InterpolateShortestEdge(100, 50).get_transform(image[:, :1]).new_size == (50, 1)


def test_draws_every_length_as_often():
    image = np.zeros((10, 20), np.uint8)
    choice = InterpolateShortestEdge((10, 20, 30))
    drawn = [choice.get_transform(image).new_size[0] for _ in range(600)]
    assert set(drawn) == {10, 20, 30}
    assert min(drawn.count(length) for length in (10, 20, 30)) > 150
    between = InterpolateShortestEdge((8, 11), sample_style="range")
    assert {between.get_transform(image).new_size[0] for _ in range(200)} == {8, 9, 10, 11}


def test_grey_images_many_channels_and_strided_arrays():
    rng = np.random.default_rng(1)
    transform = InterpolateTransform(9, 13, 20, 5)
    grey = rng.random((9, 13), np.float32)
    assert transform.apply_image(grey).shape == (20, 5)
    stack = np.stack([grey, grey + 1, grey * 2, grey, grey], axis=2)
    assert np.array_equal(transform.apply_image(stack)[..., 2], transform.apply_image(grey * 2))
    mirrored = np.flip(stack, axis=1)
    assert np.allclose(transform.apply_image(mirrored), np.flip(transform.apply_image(stack), axis=1), atol=1e-6)
    assert transform.apply_image((grey > 0.5)[..., None]).dtype == np.float32


def test_labels_above_what_floats_hold_are_kept():
    labels = np.array([[2**24 + 1, 5], [0, 2**30 + 3]], np.int32)
    assert np.unique(InterpolateTransform(2, 2, 7, 5).apply_segmentation(labels)).tolist() == sorted(labels.ravel())


def test_the_inverse_takes_points_back():
    transform = InterpolateTransform(427, 640, 799, 1199)
    points = np.random.default_rng(2).random((50, 2)) * (640, 427)
    assert np.allclose(transform.inverse().apply_coords(transform.apply_coords(points)), points)
    assert transform.apply_coords(np.zeros((0, 2))).shape == (0, 2)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match="images of 7x5 pixels, got 4x5"):
        InterpolateTransform(5, 7, 3, 3).apply_image(np.zeros((5, 4)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(short_edge_length=0), "must be positive"),
        (dict(short_edge_length=[]), "must be positive"),
        (dict(short_edge_length=5, max_size=0), "must be positive"),
        (dict(short_edge_length=5, sample_style="all"), "sample_style"),
        (dict(short_edge_length=(9, 5), sample_style="range"), r"two lengths \(min, max\)"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        InterpolateShortestEdge(**arguments)
