"""Tables of tracks, counts at lines and in zones against a count by hand, and the film that is drawn."""

import csv
import io
import os
import subprocess
import sys

import av
import numpy as np
import pytest
from moving_objects import found_in

from maskrcnn_plus.results.track_film import TrackPainter, write_film
from maskrcnn_plus.results.tracks import TrackCounts, TrackedFrame, write_track_table


def frames(*ways, classes=None, size=(60, 80)):
    """Frames of squares of 6 pixels whose centres follow `ways`, lists of (x, y) or None, with identities from 1."""
    for number, places in enumerate(zip(*ways, strict=True), start=1):
        labels = np.zeros(size, dtype=np.int32)
        for identity, place in enumerate(places, start=1):
            if place is not None:
                x, y = place
                labels[y - 3 : y + 3, x - 3 : x + 3] = identity
        found, values = found_in(labels)
        for k, value in enumerate(values):
            found.pred_classes[k] = (classes or {}).get(value, 0)
        yield TrackedFrame(number, found, np.array(values, dtype=np.int64))


def counted(ways, **places):
    counts = TrackCounts(**places)
    for frame in frames(*ways, classes={2: 1}):
        counts.add(frame)
    return {(where, kind): int(count) for _, where, kind, count in counts.rows("film", ["a", "b"])}


def test_a_row_an_object_and_frame():
    film = list(frames([(10, 10), (12, 10)], [None, (40, 30)], classes={2: 1}))
    film[0].identities[:] = 5
    file = io.BytesIO()
    write_track_table(file, film, "=film", ["a", "b"], rate=4.0, parents={2: 5})
    rows = list(csv.DictReader(io.StringIO(file.getvalue().decode())))
    assert [(row["id"], row["frame"], row["time_s"], row["class"], row["parent"]) for row in rows] == [
        ("5", "1", "0", "a", ""),
        ("1", "2", "0.25", "a", ""),
        ("2", "2", "0.25", "b", "5"),
    ]
    assert {row["video"] for row in rows} == {"'=film"}
    assert [float(rows[2][key]) for key in ("x0_px", "y0_px", "x1_px", "y1_px", "area_px")] == [37, 27, 43, 33, 36]
    assert (rows[2]["centroid_x_px"], rows[2]["centroid_y_px"], rows[2]["score"]) == ("40", "30", "0.89999998")


def test_objects_without_a_track_are_no_rows_and_not_counted():
    film = list(frames([(10, 10)], [(40, 30)]))
    film[0].identities[0] = 0
    file, counts = io.BytesIO(), TrackCounts()
    write_track_table(file, film, "film")
    counts.add(film[0])
    assert file.getvalue().count(b"\n") == 2
    assert counts.rows("film") == [["film", "everywhere", "class 0", "1"]]


def test_no_frame_and_no_object():
    file = io.BytesIO()
    write_track_table(file, [], "film")
    assert file.getvalue().count(b"\n") == 1
    counts = TrackCounts(lines=[(0, 0, 5, 5)], zones=[[(0, 0), (9, 0), (0, 9)]])
    for frame in frames([None, None]):
        counts.add(frame)
    assert counts.rows("film") == []


def test_what_crosses_a_line_is_counted_by_its_side():
    """A line from left to right at y = 30: its left side is above."""
    down, up = [(20, y) for y in (12, 24, 36, 48)], [(50, y) for y in (48, 36, 24, 12)]
    there_and_back = [(70, y) for y in (24, 36, 36, 24)]
    beside = [(x, 24) for x in (5, 6, 7, 8)]
    counts = counted([down, up, there_and_back, beside], lines=[(0, 30, 79, 30)])
    assert counts["line 1 to the right", "a"] == 2  # down, and there
    assert counts["line 1 to the left", "a"] == 1  # and back
    assert counts["line 1 to the left", "b"] == 1  # up
    assert counts["line 1 to the right", "b"] == 0
    assert (counts["everywhere", "a"], counts["everywhere", "b"]) == (3, 1)


def test_what_was_in_a_zone_is_counted_once():
    corner = [(10, 10), (50, 50), (10, 10)]
    outside = [(60, 50), (60, 52), (60, 54)]
    through = [(60, 10), (20, 12), (60, 40)]
    zones = [[(0, 0), (30, 0), (30, 30), (0, 30)], [(55, 45), (79, 45), (79, 59), (55, 59)]]
    counts = counted([corner, outside, through], zones=zones)
    assert (counts["zone 1", "a"], counts["zone 1", "b"]) == (2, 0)
    assert (counts["zone 2", "a"], counts["zone 2", "b"]) == (0, 1)


def test_an_object_has_the_class_of_most_of_its_frames():
    counts = TrackCounts()
    for kind in (1, 0, 1):
        for frame in frames([(10, 10)], classes={1: kind}):
            counts.add(frame)
    assert counts.rows("film", ["a", "b"]) == [["film", "everywhere", "b", "1"]]


@pytest.mark.parametrize(
    "places",
    [{"lines": [(1, 2, 1, 2)]}, {"lines": [(1, 2, 3)]}, {"zones": [[(0, 0), (1, 1)]]}, {"lines": [(0, 0, 1, np.nan)]}],
)
def test_lines_and_zones_that_are_none_are_refused(places):
    with pytest.raises(ValueError, match=r"^(line|zone) .*it must be"):
        TrackCounts(**places)


def test_the_film_can_be_read_and_shows_tracks():
    ways = [[(10 + 3 * k, 20) for k in range(5)], [None, None, (60, 40), (60, 43), None]]
    painter = TrackPainter(counts=TrackCounts(lines=[(0, 30, 78, 30)]))
    black = np.zeros((61, 79, 3), dtype=np.uint8)
    pictures = [painter.draw(black, frame) for frame in frames(*ways, size=(61, 79))]
    assert not black.any()
    assert all(picture.any() for picture in pictures)
    assert pictures[4][20, 12:16].any()  # the trail, where the object was
    first, second = (np.median(pictures[3][y - 3 : y + 3, x - 3 : x + 3], axis=(0, 1)) for x, y in ((19, 20), (60, 43)))
    assert np.abs(first - second).max() > 20  # two identities, two colours
    file = io.BytesIO()
    write_film(file, pictures, rate=12.5)
    file.seek(0)
    with av.open(file) as container:
        assert float(container.streams.video[0].average_rate) == 12.5
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(shown) == 5
    assert shown[0].shape == (62, 80, 3)  # even
    assert np.abs(shown[3][:61, :79].astype(int) - pictures[3]).mean() < 8


ENCODE = """
import hashlib, io
import cv2, numpy as np
from maskrcnn_plus.results.track_film import write_film
pictures = np.zeros((8, 60, 100, 3), dtype=np.uint8)
for k, picture in enumerate(pictures):
    for j in range(6):
        centre = ((17 * j + 5 * k) % 100, (13 * j + 3 * k) % 60)
        cv2.circle(picture, centre, 6, (40 * j + 50, 220 - 20 * j, 90), -1, cv2.LINE_AA)
file = io.BytesIO()
write_film(file, pictures, 4.0)
print(hashlib.sha256(file.getvalue()).hexdigest())
"""


def test_the_same_pictures_are_the_same_bytes_whatever_the_memory_held_before():
    # glibc fills what it allocates with the complement of MALLOC_PERTURB_
    found = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", ENCODE],
            env={**os.environ, "MALLOC_PERTURB_": value},
            check=True,
            capture_output=True,
        ).stdout
        for value in ("40", "120", "200")
    }
    assert len(found) == 1
