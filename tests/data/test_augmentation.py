"""Augmentations keep image, labels and coordinates in register, and say which argument is wrong."""

import random

import cv2
import numpy as np
import pytest
from detectron2.data import transforms as T

from maskrcnn_plus.data.augmentation import (
    CropResizeTransform,
    RandomRotate90,
    RandomScaleCrop,
    Rotate90Transform,
    ScaleImage,
)
from maskrcnn_plus.data.intensity import RandomIntensity
from maskrcnn_plus.masks.polygons import clip_polygon


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(0)  # noqa: NPY002 - Detectron2's augmentations draw from the global generator
    random.seed(0)


def disc_scene(height, width, num_discs, radius, seed):
    """Label image of well separated discs and the centroids (x, y) of their pixels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] + 0.5
    labels, centres = np.zeros((height, width), np.int32), []
    for attempt in range(10_000):
        if len(centres) == num_discs:
            break
        if attempt % 50 == 49:  # the discs so far may leave no room
            centres, labels = [], np.zeros_like(labels)
        centre = rng.uniform(radius, [width - radius, height - radius])
        if all(np.hypot(*(centre - other)) > 2 * radius + 2 for other in centres):
            centres.append(centre)
            labels[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2] = len(centres) + 70_000
    assert len(centres) == num_discs
    return labels, np.array([centroid(labels == label) for label in range(70_001, 70_001 + num_discs)])


def centroid(mask):
    y, x = np.nonzero(mask)
    return np.array([x.mean() + 0.5, y.mean() + 0.5])


@pytest.mark.parametrize("scale", [(0.4, 0.5), (0.9, 1.1), (1.0, 1.0), (1.7, 3.0)], ids=str)
@pytest.mark.parametrize("shape", [(150, 200), (50, 300), (70, 60)], ids=str)
def test_scale_crop_keeps_image_labels_and_coordinates_in_register(scale, shape):
    labels, centres = disc_scene(*shape, num_discs=3, radius=7, seed=1)
    augmentation = RandomScaleCrop((96, 80), scale)
    errors = []
    for _ in range(30):
        image = ((labels > 0) * 255).astype(np.float32)[:, :, None].repeat(3, 2)
        aug_input = T.AugInput(image)
        transform = augmentation(aug_input)
        moved = transform.apply_segmentation(labels)
        assert aug_input.image.shape == (96, 80, 3)
        assert moved.shape == (96, 80)
        assert moved.dtype == np.int32
        assert set(np.unique(moved)) <= set(np.unique(labels))
        # An edge may lie half a pixel of the coarser grid away, more would be a shift.
        edge = cv2.dilate(
            (cv2.Laplacian((moved > 0).astype(np.uint8), cv2.CV_8U) != 0).astype(np.uint8), np.ones((3, 3))
        )
        assert np.array_equal((aug_input.image[..., 0] > 127.5)[edge == 0], (moved > 0)[edge == 0])
        for label, centre in enumerate(transform.apply_coords(centres), start=70_001):
            mask = moved == label
            margin = 8 * transform.resized[0] / transform.crop[3]
            inside = (margin < centre).all() and (centre < np.array([80, 96]) - margin).all()
            if inside:
                errors.append(centroid(mask) - centre)
    # A single disc moves by less than a repeated or dropped row; a shift of half a pixel would show in the mean.
    assert np.abs(errors).max() < 0.6
    assert np.abs(np.mean(errors, axis=0)).max() < 0.1


def test_scale_crop_of_a_ramp_shows_the_coordinates_it_reports():
    """Linear interpolation and area averages reproduce a linear ramp, so pixel values tell where they came from."""
    ramp = (np.arange(300, dtype=np.float32) + 0.5)[None].repeat(200, 0)
    for scale in (0.5, 0.77, 1.0, 2.3):
        transform = RandomScaleCrop(64, (scale, scale)).get_transform(ramp)
        out = transform.apply_image(ramp)
        x = np.arange(64) + 0.5
        source = transform.crop[0] + x * transform.crop[2] / 64
        assert np.allclose(out[32, 3:-3], source[3:-3], atol=0.02 if scale != 0.77 else 0.3)
        assert np.allclose(transform.apply_coords(np.stack([source, source], 1))[:, 0], x)


@pytest.mark.parametrize("scale", [0.6, 1.5])
def test_scale_crop_of_many_channels_is_that_of_each(scale):
    image = np.random.default_rng(0).random((90, 110, 7), dtype=np.float32)
    transform = RandomScaleCrop(64, (scale, scale)).get_transform(image)
    alone = [transform.apply_image(np.ascontiguousarray(image[:, :, k])) for k in range(7)]
    assert np.allclose(transform.apply_image(image), np.stack(alone, axis=2), atol=1e-6)


def test_scale_crop_windows_stay_inside_the_source_and_reach_every_border():
    image = np.zeros((100, 140), np.uint8)
    augmentation = RandomScaleCrop((32, 48), (0.5, 2.0))
    crops = np.array([augmentation.get_transform(image).crop for _ in range(2000)])
    x, y, width, height = crops.T
    assert (x >= 0).all()
    assert (y >= 0).all()
    assert (x + width <= 140).all()
    assert (y + height <= 100).all()
    assert x.min() == 0
    assert y.min() == 0
    assert (x + width).max() == 140
    assert (y + height).max() == 100
    magnification = 32 / height
    assert magnification.min() == pytest.approx(0.5, abs=0.02)
    assert magnification.max() == pytest.approx(2, abs=0.04)
    assert np.mean(magnification < 1) == pytest.approx(0.5, abs=0.06)  # log-uniform: as often smaller as larger


def test_scale_crop_pads_right_and_below_and_labels_with_background():
    image = np.full((10, 20, 5), 100, np.uint8)
    transform = RandomScaleCrop((40, 50), (2.0, 2.0), pad_value=9).get_transform(image)
    out, labels = transform.apply_image(image), transform.apply_segmentation(np.ones((10, 20), np.int32))
    assert (out[:20, :40] == 100).all()
    assert (out[20:] == 9).all()
    assert (out[:, 40:] == 9).all()
    assert labels.sum() == 20 * 40
    assert (labels[:20, :40] == 1).all()


def test_scale_crop_at_scale_one_copies_pixels():
    image = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    transform = RandomScaleCrop((20, 30)).get_transform(image)
    x, y, width, height = transform.crop
    assert np.array_equal(transform.apply_image(image), image[y : y + 20, x : x + 30])
    assert np.array_equal(transform.apply_segmentation(image[..., 0]), image[y : y + 20, x : x + 30, 0])
    assert (width, height) == (30, 20)


def test_scale_crop_of_one_pixel():
    transform = RandomScaleCrop(16, (0.1, 10.0)).get_transform(np.full((1, 1, 3), 7, np.uint8))
    assert transform.apply_image(np.full((1, 1, 3), 7, np.uint8))[0, 0].tolist() == [7, 7, 7]
    assert transform.apply_segmentation(np.ones((1, 1), np.int32))[0, 0] == 1


def test_boxes_follow_the_crop():
    transform = CropResizeTransform((10, 20, 30, 40), (80, 60), (90, 60))
    assert transform.apply_box(np.array([[10.0, 20, 40, 60], [0, 0, 11, 21]])).tolist() == [
        [0, 0, 60, 80],
        [-20, -40, 2, 2],
    ]


def test_polygons_are_cut_at_the_crop():
    transform = CropResizeTransform((10, 10, 10, 10), (20, 20), (30, 30))
    square = np.array([[5.0, 5], [15, 5], [15, 15], [5, 15]])
    outside = np.array([[0.0, 0], [5, 0], [5, 5]])
    (polygon,) = transform.apply_polygons([square, outside])
    assert sorted(map(tuple, polygon)) == [(0, 0), (0, 10), (10, 0), (10, 10)]


def polygon_area(polygon):
    x, y = polygon.T
    return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2 if len(polygon) else 0.0


def test_clip_polygon_area_equals_shapely():
    geometry = pytest.importorskip("shapely.geometry")
    rng = np.random.default_rng(3)
    window = geometry.box(0, 0, 10, 8)
    for _ in range(200):
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 12)))
        radius = rng.uniform(1, 8, len(angles))
        star = rng.uniform(-3, 13, 2) + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        shape = geometry.Polygon(star)
        if not shape.is_valid:
            continue
        clipped = clip_polygon(star, 10, 8)
        assert polygon_area(clipped) == pytest.approx(shape.intersection(window).area, abs=1e-9)
        assert len(clipped) == 0 or ((clipped >= 0).all() and (clipped <= [10, 8]).all())


def test_clip_polygon_leaves_an_inner_polygon_alone():
    polygon = np.array([[1.0, 1], [9, 1], [5, 7]])
    assert np.array_equal(clip_polygon(polygon, 10, 8), polygon)


@pytest.mark.parametrize("k", range(4))
def test_rotation_is_exact_for_pixels_boxes_and_points(k):
    labels = np.zeros((30, 50), np.int32)
    labels[4:9, 12:31] = 3
    transform = Rotate90Transform(30, 50, k)
    turned = transform.apply_segmentation(labels)
    assert np.array_equal(turned, np.rot90(labels, k))
    y, x = np.nonzero(turned)
    assert transform.apply_box(np.array([[12.0, 4, 31, 9]])).tolist() == [[x.min(), y.min(), x.max() + 1, y.max() + 1]]
    points = np.array([[0.0, 0], [12.5, 4.25]])
    assert np.array_equal(transform.inverse().apply_coords(transform.apply_coords(points)), points)
    assert np.array_equal(transform.inverse().apply_image(turned), labels)
    rows, columns = np.nonzero(labels)
    moved = transform.apply_coords(np.stack([columns + 0.5, rows + 0.5], 1)) - 0.5
    assert (turned[moved[:, 1].astype(int), moved[:, 0].astype(int)] == 3).all()


def test_random_rotation_draws_all_four():
    drawn = [RandomRotate90().get_transform(np.zeros((2, 3))).k for _ in range(400)]
    assert np.bincount(drawn, minlength=4).min() > 60


def test_chain_with_flips_keeps_labels_and_coordinates_together():
    labels, centres = disc_scene(120, 120, num_discs=4, radius=8, seed=2)
    chain = T.AugmentationList(
        [
            RandomRotate90(),
            T.RandomFlip(0.5, horizontal=True, vertical=False),
            T.RandomFlip(0.5, horizontal=False, vertical=True),
            RandomIntensity(noise=(1, 5)),
            ScaleImage(2.0),
        ]
    )
    for _ in range(10):
        aug_input = T.AugInput((labels > 0).astype(np.uint8) * 200)
        transforms = chain(aug_input)
        moved = transforms.apply_segmentation(labels)
        points = transforms.apply_coords(centres.copy())
        for label, centre in enumerate(points, start=70_001):
            assert np.allclose(centroid(moved == label), centre)
        assert np.mean((aug_input.image > 100) == (moved > 0)) > 0.99


@pytest.mark.parametrize(
    ("shape", "scale", "max_size", "expected"),
    [
        ((100, 60), 1.5, 4096, (150, 90)),
        ((100, 60), 1.5, 120, (120, 72)),
        ((300, 200), 1.0, 150, (150, 100)),
        ((1, 9), 0.1, 99, (1, 1)),
    ],
)
def test_scale_image_has_the_size_it_promises(shape, scale, max_size, expected):
    image = np.zeros((*shape, 3), np.uint8)
    transform = ScaleImage(scale, max_size).get_transform(image)
    assert transform.apply_image(image).shape == (*expected, 3)
    assert transform.apply_segmentation(image[..., 0]).shape == expected
    corner = np.array([[shape[1], shape[0]]], dtype=float)
    assert np.allclose(transform.apply_coords(corner), [[expected[1], expected[0]]])


def test_the_global_generator_decides():
    image = np.zeros((100, 100, 3), np.uint8)
    augmentation = RandomScaleCrop(32, (0.5, 2.0))
    np.random.seed(4)  # noqa: NPY002
    first = [augmentation.get_transform(image).crop for _ in range(5)]
    np.random.seed(4)  # noqa: NPY002
    assert [augmentation.get_transform(image).crop for _ in range(5)] == first
    assert len(set(first)) > 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandomScaleCrop(0), "size"),
        (lambda: RandomScaleCrop((5, 5, 5)), "size"),
        (lambda: RandomScaleCrop(2.5), "size"),
        (lambda: RandomScaleCrop(8, (0, 1)), "scale"),
        (lambda: RandomScaleCrop(8, (2, 1)), "scale"),
        (lambda: RandomScaleCrop(8, 2.0), "scale"),
        (lambda: RandomScaleCrop(8, (1, float("nan"))), "scale"),
        (lambda: RandomScaleCrop(8, pad_value=300), "pad_value"),
        (lambda: RandomIntensity(brightness=(-1, 1)), "brightness"),
        (lambda: RandomIntensity(contrast=(1, 0.5)), "contrast"),
        (lambda: RandomIntensity(gamma=(0, 1)), "gamma"),
        (lambda: RandomIntensity(invert=1.5), "invert"),
        (lambda: RandomIntensity(noise=(-1, 1)), "noise"),
        (lambda: ScaleImage(0), "scale"),
        (lambda: ScaleImage(float("nan")), "scale"),
        (lambda: ScaleImage(1, 0), "max_size"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("shape", [(40, 80), (300, 100, 3), (64, 64)])
def test_a_scale_for_a_shorter_side_gives_images_of_all_resolutions_one_size(shape):
    image = np.zeros(shape, dtype=np.uint8)
    resized = ScaleImage(scale=1.5, short_side=100).get_transform(image).apply_image(image)
    assert min(resized.shape[:2]) == 150
    assert resized.shape[0] / resized.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.02)
    crop = RandomScaleCrop(size=75, scale=(1.5, 1.5), short_side=100).get_transform(image)
    assert crop.crop[2:] == (round(min(shape[:2]) / 2),) * 2  # half of the shorter side is 75 of 150 pixels


def test_a_shorter_side_of_nothing_is_refused():
    for make in (lambda: ScaleImage(1.0, short_side=0), lambda: RandomScaleCrop(64, short_side=0)):
        with pytest.raises(ValueError, match="short_side"):
            make()
