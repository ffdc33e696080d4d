"""Films of files: identities in tables, label images and videos, the same after a run that was stopped."""

import csv
import os
import weakref

import av
import cv2
import numpy as np
import pytest
import tifffile
from moving_objects import BrightPieces, piece_predictor

from maskrcnn_plus.apps.track_files import run as track_run
from maskrcnn_plus.apps.track_files.run import TrackOptions, track_files
from maskrcnn_plus.data.pixel_size import tiff_calibration

LINE = TrackOptions(lines=((0.0, 30.0, 100.0, 30.0),))


class Killed(BaseException):
    pass


def draw(k, size=(60, 100)):
    """Frame k: a high piece that falls by 4 pixels a frame, from frame 2 on a wide one that moves to the right."""
    image = np.zeros((*size, 3), dtype=np.uint8)
    image[4 + 4 * k : 16 + 4 * k, 10:18] = 220
    if k >= 2:
        image[40:48, 30 + 3 * k : 44 + 3 * k] = 220
    return image


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with film.tif of 8 frames, 4 a second, and the same as frames/t0.png to t7.png."""
    monkeypatch.chdir(tmp_path)
    pages = np.stack([draw(k)[:, :, 0] for k in range(8)])
    tifffile.imwrite("film.tif", pages, imagej=True, metadata={"axes": "TYX", "finterval": 0.25})
    os.mkdir("frames")
    for k in range(8):
        cv2.imwrite(f"frames/t{k}.png", draw(k))
    return tmp_path


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def counted(path="out/track_counts.csv"):
    return {(row["video"], row["where"], row["class"]): int(row["count"]) for row in rows(path)}


def write_video(path, count=8):
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (100, 60))
    for k in range(count):
        writer.write(draw(k))
    writer.release()


def test_a_stack_becomes_tracks_counts_labels_and_a_film(folder):
    summary = track_files(piece_predictor(), "film.tif", "out", LINE, formats=["overlay", "labels", "csv"])
    assert (summary.num_images, summary.failures) == (8, [])
    tracks = rows("out/tracks.csv")
    assert [(row["id"], row["class"]) for row in tracks if row["frame"] == "3"] == [("1", "high"), ("2", "wide")]
    assert [row["time_s"] for row in tracks if row["id"] == "2"] == ["0.5", "0.75", "1", "1.25", "1.5", "1.75"]
    assert {float(row["area_px"]) for row in tracks if row["id"] == "1"} == {12 * 8}
    assert counted() == {
        ("film", "everywhere", "high"): 1,
        ("film", "everywhere", "wide"): 1,
        ("film", "line 1 to the left", "high"): 0,
        ("film", "line 1 to the left", "wide"): 0,
        ("film", "line 1 to the right", "high"): 1,
        ("film", "line 1 to the right", "wide"): 0,
    }
    with tifffile.TiffFile("out/labels/film.tif") as tiff:
        assert tiff.series[0].axes == "TYX"
        labels = tiff.asarray()
    for k in range(8):
        bright = draw(k)[:, :, 0] > 0
        assert np.array_equal(labels[k] > 0, bright)
        assert set(np.unique(labels[k][:, 10:18])) - {0} == {1}
        assert set(np.unique(labels[k][38:50, 30:])) - {0} == ({2} if k >= 2 else set())
    with av.open("out/overlays/film.mp4") as container:
        assert float(container.streams.video[0].average_rate) == 4
        assert sum(1 for _ in container.decode(video=0)) == 8
    assert (folder / "out/csv/film_p0008.csv").exists()


@pytest.mark.parametrize(("interval", "shown"), [(0.25, 4), (300, 10), (3600, 10)])
def test_a_film_of_a_time_lapse_can_be_watched(folder, interval, shown):
    """Minutes lie between the frames of a microscope; `time_s` has the true times."""
    pages = np.stack([draw(k)[:, :, 0] for k in range(8)])
    tifffile.imwrite("film.tif", pages, imagej=True, metadata={"axes": "TYX", "finterval": interval})
    track_files(piece_predictor(), "film.tif", "out", LINE, formats=["overlay", "labels"], pixel_size=0.5)
    with av.open("out/overlays/film.mp4") as film:
        assert film.streams.video[0].average_rate == shown
    assert max(float(row["time_s"]) for row in rows("out/tracks.csv")) == 7 * interval
    calibration = tiff_calibration("out/labels/film.tif")
    assert (calibration.width, calibration.height, calibration.interval) == (0.5, 0.5, interval)


def test_several_planes_at_a_time_are_no_frames(folder, monkeypatch):
    pages = np.stack([draw(k)[:, :, 0] for k in range(8)]).reshape(4, 2, 60, 100)
    tifffile.imwrite("film.tif", pages, imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(ValueError, match=r"film\.tif: it has several z planes at each time.*--project max"):
        track_files(piece_predictor(), "film.tif", "out", LINE)
    assert not os.path.exists("out")


def test_images_of_a_folder_are_the_frames_of_one_film(folder):
    track_files(piece_predictor(), ["frames", "film.tif"], "out", LINE, formats=["labels"])
    tracks = {name: [row for row in rows("out/tracks.csv") if row["video"] == name] for name in ("frames", "film")}
    assert tracks["frames"]
    for one, other in zip(tracks["frames"], tracks["film"], strict=True):
        assert (one.pop("video"), one.pop("time_s")) == ("frames", "")
        assert other.pop("video") == "film"
        assert other.pop("time_s")
        assert one == other
    assert np.array_equal(tifffile.imread("out/labels/frames.tif"), tifffile.imread("out/labels/film.tif"))
    assert not (folder / "out/overlays").exists()


@pytest.mark.parametrize("at", [1, 5, 8])
def test_a_stopped_run_goes_on_to_the_same_tables(folder, monkeypatch, at):
    predictor = piece_predictor()
    track_files(predictor, "film.tif", "whole", LINE, formats=["labels"])
    find, calls = BrightPieces.find, []

    def stopped(self, **example):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return find(self, **example)

    with monkeypatch.context() as patched:
        patched.setattr(BrightPieces, "find", stopped)
        assert track_files(predictor, "film.tif", "out", LINE, formats=["labels"]).interrupted
    assert not (folder / "out/tracks.csv").exists()
    predictor.model._calls = 0
    summary = track_files(predictor, "film.tif", "out", LINE, formats=["labels"])
    assert (summary.num_before, predictor.model._calls) == (at - 1, 8 - (at - 1))
    for name in ("tracks.csv", "track_counts.csv", "tracks/film.csv", "labels/film.tif"):
        assert (folder / "out" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_a_run_killed_while_tracks_are_written_goes_on(folder, monkeypatch):
    predictor = piece_predictor()
    track_files(predictor, "film.tif", "whole", LINE)
    track_files(predictor, "film.tif", "out", LINE, formats=[])
    write = track_run.write_film

    def killed(file, pictures, rate):
        file.write(b"half of it")
        raise Killed

    monkeypatch.setattr(track_run, "write_film", killed)
    with pytest.raises(Killed):
        track_files(predictor, "film.tif", "out", LINE)
    assert list((folder / "out/overlays").iterdir()) == []
    monkeypatch.setattr(track_run, "write_film", write)
    predictor.model._calls = 0
    track_files(predictor, "film.tif", "out", LINE)
    assert predictor.model._calls == 0
    for name in ("tracks.csv", "track_counts.csv", "overlays/film.mp4"):
        assert (folder / "out" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_what_is_there_is_not_made_again_and_other_lines_need_no_prediction(folder, monkeypatch):
    predictor = piece_predictor()
    track_files(predictor, "film.tif", "out", LINE)
    predictor.model._calls, before = 0, os.stat("out/overlays/film.mp4").st_mtime_ns
    track_files(predictor, "film.tif", "out", LINE)
    assert os.stat("out/overlays/film.mp4").st_mtime_ns == before
    track_files(predictor, "film.tif", "out", TrackOptions(lines=((0.0, 1.0, 100.0, 1.0),)))
    assert counted()["film", "line 1 to the right", "high"] == 0
    assert os.stat("out/overlays/film.mp4").st_mtime_ns != before
    assert predictor.model._calls == 0


def test_frames_are_not_all_in_memory(folder, monkeypatch):
    alive, most = [], []
    draw_frame = track_run.TrackPainter.draw

    def watched(self, image, frame):
        alive.append(weakref.ref(image))
        most.append(sum(each() is not None for each in alive))
        return draw_frame(self, image, frame)

    monkeypatch.setattr(track_run.TrackPainter, "draw", watched)
    write_video("film.avi", count=12)
    track_files(piece_predictor(), "film.avi", "out")
    assert len(most) == 12
    assert max(most) <= 2


def test_one_frame_and_frames_without_objects(folder):
    os.mkdir("one")
    cv2.imwrite("one/x.png", draw(0))
    tifffile.imwrite("dark.tif", np.zeros((3, 60, 100), dtype=np.uint8), imagej=True, metadata={"axes": "TYX"})
    summary = track_files(piece_predictor(), ["one", "dark.tif"], "out", LINE, formats=["overlay", "labels"])
    assert summary.failures == []
    assert [(row["video"], row["id"], row["frame"]) for row in rows("out/tracks.csv")] == [("one", "1", "1")]
    assert not tifffile.imread("out/labels/dark.tif").any()
    assert counted("out/tracks/dark_counts.csv") == {}


def test_what_is_seen_once_in_a_film_is_no_object(folder):
    image = draw(3)
    image[50:56, 80:86] = 220
    cv2.imwrite("frames/t3.png", image)
    track_files(piece_predictor(), "frames", "out", formats=["csv"])
    assert {row["id"] for row in rows("out/tracks.csv")} == {"1", "2"}
    assert len(rows("out/csv/t3.csv")) == 3


def test_a_truncated_video_is_named_and_followed_to_its_end(folder, capsys):
    write_video("film.avi", count=30)
    content = (folder / "film.avi").read_bytes()
    (folder / "cut.avi").write_bytes(content[: len(content) // 2])
    summary = track_files(piece_predictor(), "cut.avi", "out", formats=["overlay"])
    assert "cut.avi: only " in capsys.readouterr().err
    (name, reason) = summary.failures[0]
    assert (name, "frames can be read" in reason) == ("cut.avi", True)
    frames = {int(row["frame"]) for row in rows("out/tracks.csv")}
    assert frames == set(range(1, len(frames) + 1))
    with av.open("out/overlays/cut.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == len(frames)


def test_a_file_that_is_no_video_is_named_once(folder):
    (folder / "none.mp4").write_bytes(b"no video")
    summary = track_files(piece_predictor(), ["none.mp4", "film.tif"], "out", formats=["overlay"])
    assert [name for name, _ in summary.failures] == ["none.mp4"]
    assert {row["video"] for row in rows("out/tracks.csv")} == {"film"}
    assert not (folder / "out/overlays/none.mp4").exists()


def test_frames_of_different_sizes_are_named(folder, capsys):
    cv2.imwrite("frames/t5.png", draw(5, size=(64, 100)))
    summary = track_files(piece_predictor(), ["frames", "film.tif"], "out", formats=[])
    assert summary.failures == [
        (
            "frames",
            "frame 6 has 64 x 100 pixels (height x width), others have 60 x 100: --track needs frames of one size",
        )
    ]
    assert {row["video"] for row in rows("out/tracks.csv")} == {"film"}


def test_a_frame_that_cannot_be_read_is_one_without_objects(folder):
    (folder / "frames/t4.png").write_bytes(b"no image")
    summary = track_files(piece_predictor(), "frames", "out", formats=["overlay"])
    assert [name for name, _ in summary.failures] == ["frames/t4.png"]
    seen = [int(row["frame"]) for row in rows("out/tracks.csv") if row["id"] == "1"]
    assert seen == [1, 2, 3, 4, 6, 7, 8]
    with av.open("out/overlays/frames.mp4") as container:
        shown = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    assert [picture.max() > 100 for picture in shown] == [True] * 4 + [False] + [True] * 3


def test_files_of_others_are_not_replaced(folder):
    os.makedirs("out/labels")
    (folder / "out/labels/film.tif").write_bytes(b"drawn by hand")
    summary = track_files(piece_predictor(), "film.tif", "out", formats=["labels"])
    assert "film.tif is there already" in summary.failures[0][1]
    assert (folder / "out/labels/film.tif").read_bytes() == b"drawn by hand"
    assert track_files(piece_predictor(), "film.tif", "out", formats=["labels"], overwrite=True).failures == []
    assert tifffile.imread("out/labels/film.tif").shape == (8, 60, 100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TrackOptions(tracker="sort"), "no tracker 'sort'"),
        (TrackOptions(memory=-1), "memory is -1"),
        (TrackOptions(tracker="bytetrack", divisions=True), "ByteTrack knows no divisions"),
        (TrackOptions(lines=((1.0, 1.0, 1.0, 1.0),)), "line"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_predicted(folder, options, message):
    with pytest.raises(ValueError, match=message):
        track_files(piece_predictor(), "film.tif", "out", options)
    assert not (folder / "out").exists()
