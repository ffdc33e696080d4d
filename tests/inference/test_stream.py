"""Streams of frames: all of them in turn, or the newest of a camera that is faster than the model."""

import threading
import time

import cv2
import numpy as np
import pytest
from moving_objects import piece_predictor

from maskrcnn_plus.errors import UserError


@pytest.fixture(scope="module")
def predictor():
    return piece_predictor()


def frame(k):
    """A bright square that moves by 4 pixels a frame."""
    image = np.zeros((40, 80, 3), dtype=np.uint8)
    image[10:20, 4 * k : 4 * k + 10] = 200
    return image


def test_frames_are_taken_one_by_one_as_they_are_needed(predictor):
    taken = []

    def source():
        for k in range(5):
            taken.append(k)
            yield frame(k)

    results = predictor.stream(source(), track=True)
    assert taken == []
    for k in range(5):
        result = next(results)
        assert taken == list(range(k + 1))
        assert (result.number, result.dropped) == (k + 1, 0)
        assert result.instances.track_ids.tolist() == [1]
        assert result.instances.pred_boxes.tensor.tolist() == [[4 * k, 10, 4 * k + 10, 20]]
        assert np.array_equal(result.frame, frame(k))
        assert (result.frames_per_second > 0) == (k > 0)
    assert next(results, None) is None


def test_the_newest_frame_is_predicted_and_older_ones_are_dropped(predictor):
    arrived, done = threading.Event(), threading.Event()

    def camera():
        yield frame(0)
        assert arrived.wait(10)  # while the first is predicted
        yield from map(frame, range(1, 6))
        done.set()
        yield frame(6)

    results = predictor.stream(camera(), latest=True)
    assert next(results).number == 1
    arrived.set()
    assert done.wait(10)
    rest = list(results)
    assert rest[-1].number == 7
    assert rest[-1].dropped == 7 - 1 - len(rest)
    assert rest[-1].dropped >= 4
    times = [result.time for result in rest]
    assert times == sorted(times)


def test_a_stream_that_is_closed_ends_its_camera(predictor):
    ended = threading.Event()

    def camera():
        try:
            while True:
                yield frame(0)
                time.sleep(0.001)
        finally:
            ended.set()

    for latest in (True, False):
        ended.clear()
        results = predictor.stream(camera(), latest=latest)
        next(results)
        results.close()
        assert ended.wait(10)
    assert not [thread for thread in threading.enumerate() if thread.name == "newest frame"]


@pytest.mark.parametrize("latest", [True, False])
def test_an_error_of_the_camera_is_raised(predictor, latest):
    def camera():
        yield frame(0)
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        list(predictor.stream(camera(), latest=latest))


def test_a_video_file_is_predicted_frame_by_frame(predictor, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "x.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (80, 40))
    for k in range(4):
        image = frame(k)
        image[:, 60:, 0] = 250  # blue, in OpenCV's order
        writer.write(image)
    writer.release()
    results = list(predictor.stream(str(tmp_path / "x.avi")))
    assert [result.number for result in results] == [1, 2, 3, 4]
    assert all(len(result.instances) == 1 for result in results)  # the model looks at red
    assert results[0].frame[:, 70, 2].mean() > 200  # RGB


def test_a_source_without_frames_is_named(predictor, tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"x\.mp4: no frame can be read"):
        next(predictor.stream(tmp_path / "x.mp4"))
    assert list(predictor.stream([])) == []
