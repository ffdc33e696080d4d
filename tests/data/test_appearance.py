"""Stains, colours, focus and light: formulas, what stays as it is, and ranges."""

import cv2
import numpy as np
import pytest
from detectron2.data import transforms as T

from maskrcnn_plus.data.appearance import RandomBlur, RandomColour, RandomIllumination, RandomStain


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(0)  # noqa: NPY002 - Detectron2's augmentations draw from the global generator


def photograph(dtype=np.uint8, shape=(32, 40, 3)):
    return np.random.default_rng(0).integers(20, 220, shape).astype(dtype)


HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])  # Ruifrok and Johnston (2001), as printed


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_a_stain_alone_becomes_more_or_less_of_itself(order):
    stain = HAEMATOXYLIN / np.linalg.norm(HAEMATOXYLIN)
    stain = stain if order == "RGB" else stain[::-1]
    amounts = np.linspace(0.1, 2, 12)
    image = (256 * np.exp(-amounts[:, None] * stain) - 1).reshape(3, 4, 3).astype(np.float32)
    factors = []
    for _ in range(50):
        changed = RandomStain(0.4, 0.0, order).get_transform(image).apply_image(image)
        density = -np.log((changed.reshape(-1, 3) + 1) / 256)
        found = density @ stain / amounts
        assert np.allclose(found, found[0], rtol=1e-3)  # one factor for all pixels
        assert np.allclose(density, found[:, None] * amounts[:, None] * stain, atol=2e-3)  # nothing but this stain
        factors.append(found[0])
    assert 0.6 <= min(factors) < 0.7 < 1.3 < max(factors) <= 1.4


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(
    "augmentation",
    [RandomStain(0.0, 0.0), RandomColour(), RandomBlur((0.0, 0.0)), RandomIllumination(0.0)],
    ids=lambda each: type(each).__name__,
)
def test_no_change_is_none(augmentation, dtype):
    image = photograph(dtype)
    changed = augmentation.get_transform(image).apply_image(image)
    assert changed.dtype == dtype
    assert np.abs(changed - image.astype(np.float64)).max() < 1e-2


@pytest.mark.parametrize(
    "augmentation",
    [
        RandomStain(0.9, 1.0),
        RandomColour(180, (0.0, 3.0), 0.5),
        RandomBlur((0.0, 4.0)),
        RandomIllumination(1.0),
    ],
    ids=lambda each: type(each).__name__,
)
@pytest.mark.parametrize("shape", [(32, 40, 3), (32, 40, 1), (32, 40, 5), (1, 1, 3)], ids=str)
def test_images_keep_shape_type_and_range_and_the_original_stays(augmentation, shape):
    for dtype in (np.uint8, np.float32):
        image = photograph(dtype, shape)
        original = image.copy()
        for _ in range(10):
            changed = augmentation.get_transform(image).apply_image(image)
            assert (changed.shape, changed.dtype) == (shape, dtype)
            assert np.isfinite(changed).all()
            assert 0 <= changed.min() <= changed.max() <= 255
        assert np.array_equal(image, original)


def test_a_hue_turned_by_a_third_of_a_circle_permutes_the_channels_and_greys_stay():
    image = photograph(np.float32)
    turned = RandomColour(hue=120).get_transform(image).apply_image(image)
    assert not np.allclose(turned, image, atol=1)
    assert np.allclose(turned.mean(2), image.mean(2), atol=4)  # but for values that are clipped
    grey = np.repeat(photograph(np.float32)[..., :1], 3, axis=2)
    assert np.allclose(RandomColour(hue=180).get_transform(grey).apply_image(grey), grey, atol=1e-2)


def test_without_colours_all_channels_are_their_mean():
    image = photograph(np.float32)
    changed = RandomColour(hue=180, gain=(0.1, 2.0), grey=1.0).get_transform(image).apply_image(image)
    assert np.allclose(changed, image.mean(2, keepdims=True), atol=1e-2)


def test_blur_is_opencvs_and_light_falls_from_one_side_to_the_other():
    image = photograph()
    blurred = RandomBlur((2.0, 2.0)).get_transform(image).apply_image(image)
    assert np.array_equal(blurred, cv2.GaussianBlur(image, (0, 0), 2.0))
    flat = np.full((51, 51, 1), 100, np.float32)
    for _ in range(10):
        lit = RandomIllumination(0.5).get_transform(flat).apply_image(flat)[..., 0]
        assert lit[25, 25] == pytest.approx(100)
        assert 50 <= lit.min() < 100 < lit.max() <= 150
        assert np.allclose(lit + lit[::-1, ::-1], 200, atol=1e-3)


def test_geometry_stays():
    points, labels = np.array([[1.0, 2.0]]), np.arange(12).reshape(3, 4)
    for augmentation in (RandomStain(), RandomColour(hue=9), RandomBlur((1, 2)), RandomIllumination(0.3)):
        aug_input = T.AugInput(photograph())
        transform = augmentation(aug_input)
        assert np.array_equal(transform.apply_coords(points), points)
        assert np.array_equal(transform.apply_segmentation(labels), labels)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: RandomStain(factor=1.0), "factor"),
        (lambda: RandomStain(offset=-1), "offset"),
        (lambda: RandomStain(order="GRB"), "order"),
        (lambda: RandomColour(hue=200), "hue"),
        (lambda: RandomColour(grey=1.2), "grey"),
        (lambda: RandomColour(gain=(2, 1)), "gain"),
        (lambda: RandomBlur((-1, 1)), "sigma"),
        (lambda: RandomIllumination(1.5), "strength"),
    ],
)
def test_what_is_out_of_range_is_named(make, name):
    with pytest.raises(ValueError, match=name):
        make()
