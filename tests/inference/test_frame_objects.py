"""Objects that are moved, overlapped and fitted, against the same done on maps of the whole frame."""

import numpy as np
import pytest
from moving_objects import found_in

from maskrcnn_plus.inference.frame_objects import list_objects

SIZE = (40, 50)


def blob(rng):
    """An ellipse anywhere in the frame, bool [H, W]."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    (cy, cx), (a, b) = rng.uniform((4, 4), (36, 46)), rng.uniform(3, 9, size=2)
    return ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 <= 1


def as_object(mask):
    (found,) = list_objects(found_in(mask.astype(np.int32))[0])
    return found


def shifted(mask, x, y):
    """The map moved, with what leaves the frame lost."""
    padded = np.pad(mask, 30)
    return np.roll(padded, (y, x), (0, 1))[30:-30, 30:-30]


@pytest.mark.parametrize("seed", range(30))
def test_areas_are_those_of_whole_maps(seed):
    rng = np.random.default_rng(seed)
    mask, other, third = (blob(rng) for _ in range(3))
    x, y = rng.integers(-25, 26, size=2).tolist()
    moved, there = as_object(mask).move((x + 0.3, y - 0.3)), shifted(mask, x, y)
    found = as_object(other)
    assert moved.shared_area(found) == found.shared_area(moved) == np.count_nonzero(there & other)
    whole = as_object(mask).area  # counts outside the frame, too
    assert moved.iou(found) == np.count_nonzero(there & other) / (whole + found.area - np.count_nonzero(there & other))
    occupied = np.zeros(SIZE, dtype=bool)
    for each in (found, as_object(third)):
        each.draw(occupied)
    np.testing.assert_array_equal(occupied, other | third)
    hidden = there & third & ~other
    assert moved.hidden_area(found, occupied) == np.count_nonzero(hidden)
    union = np.count_nonzero((there | other) & ~hidden)
    assert moved.visible_iou(found, occupied) == np.count_nonzero(there & other) / union
    np.testing.assert_allclose(moved.centre, as_object(mask).centre + (x, y))


def test_outside_the_frame_nothing_counts():
    gone = as_object(blob(np.random.default_rng(0))).move((500, -500))
    found, occupied = as_object(blob(np.random.default_rng(1))), np.ones(SIZE, dtype=bool)
    assert gone.hidden_area(found, occupied) == gone.visible_iou(found, occupied) == 0
    before = occupied.copy()
    gone.draw(occupied)
    np.testing.assert_array_equal(occupied, before)


def test_a_part_that_shows_tells_where_the_whole_is():
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    disc = (y - 20) ** 2 + (x - 20) ** 2 <= 64
    place = shifted(disc, 3, -2)
    wall = x > 22  # hides most of it
    found, occupied = as_object(place & ~wall), (place | wall)
    assert found.area < 0.5 * disc.sum()
    fitted = as_object(disc).fit(found, occupied)
    np.testing.assert_array_equal(fitted.centre, as_object(place).centre)
    assert fitted.visible_iou(found, occupied) == 1
    assert np.linalg.norm(found.centre - fitted.centre) > 3  # the middle of what shows is elsewhere


def test_what_does_not_meet_stays_where_it_is():
    diagonal = np.add.outer(range(SIZE[0]), range(SIZE[1]))
    here, far, occupied = as_object(diagonal < 12), as_object(diagonal > 80), diagonal > 80
    assert here.fit(far, occupied) is here
