"""Films of synthetic nuclei: the same every time, and what is said of identities holds."""

import itertools

import numpy as np

from maskrcnn_plus.data.moving_nuclei import film_nuclei


def test_a_film_is_a_function_of_its_seed():
    first, again, other = (list(film_nuclei(seed, 3, 64, 80, count=4)) for seed in (1, 1, 2))
    for (image, labels), (image_again, labels_again) in zip(first, again, strict=True):
        assert image.shape == labels.shape == (64, 80)
        assert (image.dtype, labels.dtype) == (np.uint8, np.uint16)
        assert np.array_equal(image, image_again)
        assert np.array_equal(labels, labels_again)
    assert not np.array_equal(first[0][1], other[0][1])


def test_nuclei_are_brighter_than_the_background_and_move_by_their_speed():
    centres = []
    for image, labels in film_nuclei(3, 12, 200, 200, count=1, speed=2.0, divisions=0):
        assert image[labels == 1].mean() > 3 * image[labels == 0].mean()
        centres.append(np.argwhere(labels == 1).mean(axis=0))
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    assert 0 < steps.max() < 4 * 2.0 * np.sqrt(2)


def test_a_division_ends_an_identity_and_begins_two():
    present = [set(np.unique(labels)) - {0} for _, labels in film_nuclei(5, 40, 96, 96, count=1, divisions=0.2)]
    births = [(before - after, after - before) for before, after in itertools.pairwise(present)]
    first = next(births_at for births_at in births if births_at[1])
    assert first == ({1}, {2, 3})
