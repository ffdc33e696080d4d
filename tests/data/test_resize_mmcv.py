import numpy as np
import pytest

from maskrcnn_plus.data.resize_mmcv import MMCVResize


def test_image_fits_into_the_edges_with_sides_rounded_half_up():
    sizes = {
        (427, 640): (800, 1199),
        (333, 1000): (444, 1333),
        (800, 1199): (800, 1199),
        (600, 600): (800, 800),
    }
    for (height, width), (new_height, new_width) in sizes.items():
        for flipped in (False, True):
            shape = (width, height) if flipped else (height, width)
            image = np.zeros((*shape, 3), np.uint8)
            resized = MMCVResize(800, 1333).get_transform(image).apply_image(image)
            assert resized.shape == ((new_width, new_height, 3) if flipped else (new_height, new_width, 3))
    # 150 / 100 * 101 = 151.5 is rounded up; at a long edge of 151 the shorter side becomes 151 / 101 * 100 = 149.505.
    image = np.zeros((100, 101), np.uint8)
    assert MMCVResize(150, 200).get_transform(image).apply_image(image).shape == (150, 152)
    assert MMCVResize(150, 151).get_transform(image).apply_image(image).shape == (150, 151)


def test_a_thin_image_keeps_at_least_one_pixel():
    image = np.full((1, 3000, 3), 7, np.uint8)
    resized = MMCVResize(800, 1333).get_transform(image).apply_image(image)
    assert resized.shape == (1, 1333, 3)
    assert (resized == 7).all()


def test_constant_ramp_and_single_channel():
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 2, (32, 1))
    transform = MMCVResize(64, 128).get_transform(ramp)
    resized = transform.apply_image(ramp)
    # Pixel centres lie at i + 0.5, so that output pixel i takes the ramp at (i + 0.5) / 2 - 0.5.
    expected = np.clip((np.arange(128) + 0.5) / 2 - 0.5, 0, 63) * 2
    assert np.abs(resized - expected).max() <= 0.5
    assert transform.apply_image(ramp[..., None]).shape == (64, 128, 1)


def test_coordinates_and_labels_follow_the_image():
    labels = np.zeros((40, 60), np.uint8)
    labels[10:20, 30:45] = 200
    transform = MMCVResize(80, 200).get_transform(labels)
    resized = transform.apply_segmentation(labels)
    assert set(np.unique(resized)) == {0, 200}
    rows, columns = np.nonzero(resized)
    box = transform.apply_box(np.array([[30.0, 10.0, 45.0, 20.0]]))[0]
    assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == [60, 20, 90, 40]
    assert transform.inverse().apply_box(box[None])[0].tolist() == [30, 10, 45, 20]
    assert transform.inverse().apply_image(resized).shape == labels.shape


def test_one_of_several_short_edges_is_chosen_for_each_image():
    np.random.seed(0)  # noqa: NPY002, the generator of Detectron2's augmentations
    image = np.zeros((50, 50), np.uint8)
    augmentation = MMCVResize((32, 48, 64), 100)
    assert {augmentation.get_transform(image).new_h for _ in range(40)} == {32, 48, 64}


@pytest.mark.parametrize(("short_edge_length", "max_size"), [(0, 100), ((), 100), ((32, -1), 100), (32, 0)])
def test_lengths_must_be_positive(short_edge_length, max_size):
    with pytest.raises(ValueError, match="must be positive"):
        MMCVResize(short_edge_length, max_size)
