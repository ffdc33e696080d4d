"""Identities through the frames of a film: crossings, gaps, divisions, and how many are kept in all."""

import numpy as np
import pytest
from moving_objects import follow, found_in, identity_scores

from maskrcnn_plus.data.moving_nuclei import film_nuclei
from maskrcnn_plus.inference.bytetrack import ByteTracker
from maskrcnn_plus.inference.tracking import MaskTracker


def rectangles(*places, size=(60, 80)):
    """Label image with rectangles (left, top, width, height) or None, of values 1, 2, ..., the later ones above."""
    labels = np.zeros(size, dtype=np.int32)
    for value, place in enumerate(places, start=1):
        if place is not None:
            left, top, width, height = place
            labels[top : top + height, left : left + width] = value
    return labels


def identities(tracker, film):
    """Computed identities of each true one, without repetition."""
    seen = {}
    for frame in follow(tracker, film)[1]:
        for true, computed in frame:
            if computed not in seen.setdefault(true, []):
                seen[true].append(computed)
    return seen


@pytest.mark.parametrize("tracker", [MaskTracker, ByteTracker])
def test_objects_that_cross_keep_their_identity(tracker):
    crossing = [rectangles((2 + 3 * k, 20, 12, 12), (62 - 3 * k, 26, 12, 12)) for k in range(20)]
    seen = identities(tracker(), crossing)
    assert {true: [each for each in some if each] for true, some in seen.items()} == {1: [1], 2: [2]}


def test_an_object_that_is_hidden_is_found_again_where_it_comes_out():
    def film(hidden):
        places = [(2 + 3 * k, 20, 10, 10) for k in range(20)]
        return [rectangles(None if 6 <= k < 6 + hidden else place) for k, place in enumerate(places)]

    assert identities(MaskTracker(), film(hidden=4)) == {1: [1]}
    assert identities(MaskTracker(memory=4), film(hidden=4)) == {1: [1]}
    assert identities(MaskTracker(memory=3), film(hidden=4)) == {1: [1, 2]}


def test_an_object_keeps_its_speed_below_another_of_which_little_shows():
    """It passes below a wall that is wider than itself and moves on: what shows of it moves by other amounts."""

    def film():
        for k in range(24):
            yield rectangles((2 + 3 * k, 16, 12, 12), (30, 4, 16, 40))

    assert identities(MaskTracker(), film()) == {1: [1], 2: [2]}
    assert len(identities(ByteTracker(), film())[1]) > 1


def test_an_identity_is_not_given_to_another_object_far_away():
    film = [rectangles((2, 2, 10, 10))] * 3 + [rectangles((60, 40, 10, 10))] * 3
    assert identities(MaskTracker(), film) == {1: [1, 2]}


def test_frames_without_objects():
    tracker = MaskTracker(divisions=True)
    for labels in (rectangles(), rectangles((5, 5, 9, 9)), rectangles(), rectangles((5, 5, 9, 9))):
        found, values = found_in(labels)
        computed = tracker.update(found)
        assert computed.dtype == np.int64
        assert computed.tolist() == values
    assert len(ByteTracker().update(found_in(rectangles())[0])) == 0


def test_objects_without_masks_are_followed_by_their_boxes():
    tracker = MaskTracker()
    for k in range(6):
        found, _ = found_in(rectangles((2 + 4 * k, 20, 9, 9), (50 - 4 * k, 40, 9, 9)))
        found.remove("pred_masks_rle")
        assert tracker.update(found).tolist() == [1, 2]


def test_masks_that_meet_only_by_their_boxes_are_told_apart():
    """Two interlocked L shapes whose boxes are almost the same, which move together by more than their thickness."""

    def frame(shift):
        labels = np.zeros((60, 80), dtype=np.int32)
        labels[10:40, 10 + shift : 14 + shift] = 1
        labels[10:14, 10 + shift : 38 + shift] = 1
        labels[37:41, 12 + shift : 41 + shift] = 2
        labels[12:41, 37 + shift : 41 + shift] = 2
        return labels

    assert identities(MaskTracker(), [frame(5 * k) for k in range(7)]) == {1: [1], 2: [2]}


def test_a_cell_that_divides_ends_and_its_daughters_begin():
    whole = [rectangles((30 + k, 20, 24, 12)) for k in range(8)]
    halves = [rectangles((37 - k, 20, 11, 12), (50 + k, 20, 11, 12)) for k in range(6)]
    tracker = MaskTracker(divisions=True)
    assert identities(tracker, whole + halves) == {1: [1, 2], 2: [3]}
    assert tracker.parents == {2: 1, 3: 1}
    tracker = MaskTracker()
    last = follow(tracker, whole + halves)[1][-1]
    assert len({computed for _, computed in last}) == 2
    assert tracker.parents == {}


def test_an_object_that_comes_out_from_behind_another_is_no_daughter():
    film = [rectangles((10 + 2 * k, 20, 12, 12), (28, 18, 16, 16)) for k in range(20)]
    tracker = MaskTracker(divisions=True)
    follow(tracker, film)
    assert tracker.parents == {}


def test_memory_below_0_is_refused():
    with pytest.raises(ValueError, match="memory is -1"):
        MaskTracker(memory=-1)


def nuclei(seed, **options):
    return [labels for _, labels in film_nuclei(seed, 45, **options)]


@pytest.fixture(scope="module")
def films():
    """Nuclei that move, divide and cross."""
    return [nuclei(seed, height=192, width=192, count=10) for seed in range(2)]


def mean_scores(make, films, **options):
    scores = [identity_scores(*follow(make(), film, **options)) for film in films]
    return np.mean([idf1 for idf1, _ in scores]), sum(switches for _, switches in scores)


def test_identities_of_moving_nuclei_are_kept(films):
    perfect, switches = mean_scores(lambda: MaskTracker(divisions=True), films)
    assert perfect >= 0.95
    assert switches <= 4
    by_boxes, _ = mean_scores(ByteTracker, films)
    assert perfect > by_boxes
    rough, _ = mean_scores(lambda: MaskTracker(divisions=True), films[:1], dropped=0.1, jitter=1.0)
    assert 0.8 < rough < perfect  # a tenth of the objects is missing: at most 0.947


def test_identities_are_kept_in_a_crowd():
    film = [labels for _, labels in film_nuclei(10, 45, height=192, width=192, count=22)]
    score, switches = identity_scores(*follow(MaskTracker(divisions=True), film))
    assert score >= 0.95
    assert switches <= 5


def test_the_scores_are_those_of_an_independent_implementation(films):
    evaluation = pytest.importorskip("trackers.eval.identity")
    truth, tracked = follow(MaskTracker(), films[0], dropped=0.2, jitter=1.0)
    expected = evaluation.compute_identity_metrics(
        [np.array(frame) for frame in truth],
        [np.array([computed for _, computed in frame], dtype=int) for frame in tracked],
        [
            np.array([[float(true == each) for each, _ in frame] for true in ids])
            for ids, frame in zip(truth, tracked, strict=True)
        ],
    )
    assert identity_scores(truth, tracked)[0] == pytest.approx(expected["IDF1"])
