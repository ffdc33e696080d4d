"""Intensities and colours: formulas pixel by pixel, ranges, and what stays as it is."""

import numpy as np
import pytest

from maskrcnn_plus.data.intensity import IntensityTransform, RandomIntensity


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(0)  # noqa: NPY002 - Detectron2's augmentations draw from the global generator


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 1), (40, 50, 3)], ids=str)
def test_intensity_follows_its_formula(dtype, shape):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    original = image.copy()
    out = IntensityTransform(1.2, 0.7, 1.5, True, 0.0, 0).apply_image(image)
    curved = 255 * (original / 255.0) ** 1.5
    expected = (255 - 1.2 * (curved.mean() + 0.7 * (curved - curved.mean()))).clip(0, 255)
    assert out.dtype == dtype
    assert out.shape == shape
    assert np.abs(out - expected).max() <= (0.51 if dtype == np.uint8 else 0.01)
    assert np.array_equal(image, original)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_intensity_defaults_change_nothing_and_inversion_twice_neither(dtype):
    image = np.random.default_rng(1).integers(0, 256, (20, 20, 3)).astype(dtype)
    assert np.array_equal(RandomIntensity().get_transform(image).apply_image(image), image)
    invert = RandomIntensity(invert=1.0).get_transform(image)
    assert np.array_equal(invert.apply_image(image), 255 - image)
    assert np.array_equal(invert.apply_image(invert.apply_image(image)), image)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_noise_has_its_standard_deviation_repeats_and_is_grey(dtype):
    image = np.full((200, 200, 3), 128, dtype)
    transform = RandomIntensity(noise=(9.0, 9.0)).get_transform(image)
    out = transform.apply_image(image).astype(np.float64)
    assert out.std() == pytest.approx(9, rel=0.05)
    assert out.mean() == pytest.approx(128, abs=0.3)
    assert (out == out[..., :1]).all()
    assert np.array_equal(transform.apply_image(image), out.astype(dtype))
    assert not np.array_equal(RandomIntensity(noise=(9, 9)).get_transform(image).apply_image(image), out)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_intensity_stays_in_range(dtype):
    image = np.random.default_rng(2).integers(0, 256, (30, 30, 3)).astype(dtype)
    augmentation = RandomIntensity((0.2, 4.0), (0.2, 4.0), (0.3, 3.0), 0.5, (0.0, 80.0))
    for _ in range(20):
        out = augmentation.get_transform(image).apply_image(image)
        assert np.isfinite(out).all()
        assert out.min() >= 0
        assert out.max() <= 255


def test_intensity_leaves_labels_and_points_alone_and_refuses_other_dtypes():
    transform = IntensityTransform(2.0, 1.0, 1.0, True, 3.0, 0)
    labels, points = np.arange(6).reshape(2, 3), np.array([[1.0, 2.0]])
    assert np.array_equal(transform.apply_segmentation(labels), np.arange(6).reshape(2, 3))
    assert np.array_equal(transform.apply_coords(points), [[1.0, 2.0]])
    with pytest.raises(ValueError, match="int64"):
        transform.apply_image(labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("saturation", [0.0, 0.5, 1.4])
def test_saturation_moves_channels_from_their_mean_alone(dtype, saturation):
    rng = np.random.default_rng(1)
    image = rng.integers(60, 190, (9, 7, 3)).astype(dtype)
    out = IntensityTransform(1, 1, 1, False, 0, 0, saturation).apply_image(image)
    assert out.dtype == dtype
    for place in np.ndindex(9, 7):
        mean = image[place].astype(float).mean()
        expected = np.clip(mean + saturation * (image[place].astype(float) - mean), 0, 255)
        assert np.abs(out[place] - expected).max() <= (0.5 if dtype == np.uint8 else 1e-3)


@pytest.mark.parametrize("shape", [(5, 5), (5, 5, 1), (5, 5, 4)])
def test_other_numbers_of_channels_have_no_saturation(shape):
    image = np.random.default_rng(2).integers(0, 255, shape).astype(np.float32)
    assert np.array_equal(IntensityTransform(1, 1, 1, False, 0, 0, 0.2).apply_image(image), image)


def test_without_saturation_the_random_numbers_are_those_of_before():
    drawn = []
    for arguments in ({}, {"saturation": (0.5, 1.5)}):
        np.random.seed(3)  # noqa: NPY002
        transform = RandomIntensity(noise=(1, 5), **arguments).get_transform(np.zeros((2, 2), np.uint8))
        drawn.append((transform.noise, transform.noise_seed, transform.saturation, np.random.uniform()))  # noqa: NPY002
    assert drawn[0][:2] == drawn[1][:2]
    assert drawn[0][2] == 1.0 != drawn[1][2]
    assert drawn[0][3] != drawn[1][3]
