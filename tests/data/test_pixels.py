"""Channels and grey levels of images in memory."""

import numpy as np
import pytest

from maskrcnn_plus.data.pixels import ImageReadError, intensity_range, prepare_image, resize_pixels


def image(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
def test_grey_is_repeated(shape):
    pixels = image(*shape)
    found = prepare_image(pixels, 3)
    assert found.shape == (4, 5, 3)
    for channel in range(3):
        assert np.array_equal(found[:, :, channel], pixels.reshape(4, 5, -1)[:, :, 0])


def test_fourth_channel_is_alpha_unless_four_are_wanted():
    pixels = image(4, 5, 4)
    assert np.array_equal(prepare_image(pixels, 3), pixels[:, :, :3])
    assert np.array_equal(prepare_image(pixels, 4), pixels)
    assert np.array_equal(prepare_image(pixels, None), pixels)


def test_depths():
    pixels = image(6, 7, dtype=np.uint16)
    np.testing.assert_allclose(prepare_image(pixels, 1)[:, :, 0], pixels / 257.0, rtol=1e-6)
    np.testing.assert_allclose(prepare_image(pixels / 65535.0, 1)[:, :, 0], pixels / 257.0, rtol=1e-6)
    assert prepare_image(pixels > 9, 1).max() == 255


def test_limits_stand_in_for_the_percentiles():
    pixels = image(30, 40, dtype=np.uint16)
    low, high = np.percentile(pixels, (2, 98))
    assert intensity_range(pixels, (2, 98)) == (low, high)
    own = prepare_image(pixels, 1, (2, 98))
    assert np.array_equal(prepare_image(pixels, 1, (2, 98), limits=(low, high)), own)
    np.testing.assert_allclose(
        prepare_image(pixels, 1, (2, 98), limits=(1000, 2000))[:, :, 0],
        np.clip((pixels - 1000.0) * 0.255, 0, 255),
        atol=1e-4,
    )
    assert np.array_equal(prepare_image(pixels, 1, limits=(1000, 2000)), prepare_image(pixels, 1))


def test_range_of_few_bright_pixels_and_of_none():
    pixels = np.full((20, 20), 7, dtype=np.uint16)
    assert intensity_range(pixels, (1, 99)) == (7, 7)
    assert not prepare_image(pixels, 1, (1, 99)).any()
    pixels[3, 4] = 900
    assert intensity_range(pixels, (1, 99)) == (7, 900)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((3, 0), np.uint8), "at least one pixel"),
        (np.zeros((1, 3, 4, 4), np.uint8), r"\(1, 3, 4, 4\)"),
        (np.zeros((4, 4, 7), np.uint8), "7 channels"),
        (np.full((4, 4), np.nan, np.float32), "NaN"),
        (np.full((4, 4), -1, np.int16), "value range"),
    ],
)
def test_unusable_images_are_named(pixels, message):
    with pytest.raises(ImageReadError, match=f"^tile 7.*{message}"):
        prepare_image(pixels, name="tile 7")


@pytest.mark.parametrize("limits", [(2, 1), (0, np.nan), (-np.inf, 1)])
def test_wrong_limits_are_refused(limits):
    with pytest.raises(ValueError, match="low <= high"):
        prepare_image(image(4, 4), 1, (1, 99), limits=limits)


@pytest.mark.parametrize("channels", [0, 1, 2, 3, 4, 5, 8, 11])
def test_images_of_any_number_of_channels_shrink_to_means_and_grow(channels):
    shape = (40, 60, channels) if channels else (40, 60)
    pixels = np.random.default_rng(1).random(shape, dtype=np.float32)
    means = pixels.reshape(20, 2, 20, 3, *shape[2:]).mean(axis=(1, 3))
    assert np.allclose(resize_pixels(pixels, (20, 20)), means, atol=1e-6)
    grown = resize_pixels(pixels, (80, 60))  # from one row to the next in steps of a quarter and three
    assert grown.shape == (80, *shape[1:])
    assert np.allclose(grown[1:-1:2], 0.75 * pixels[:-1] + 0.25 * pixels[1:], atol=1e-6)
    assert resize_pixels(pixels, (40, 60)) is pixels
    deep = (60_000 * pixels).astype(np.uint16)
    assert resize_pixels(deep, (30, 41)).dtype == np.uint16
    assert resize_pixels(deep, (30, 41)).shape == (30, 41, *shape[2:])
