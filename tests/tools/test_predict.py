"""tools/predict.py from the command line to the files, with a model that finds an object for each grey value."""

import csv
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from annotation_folders import masks_of
from grey_values import draw, results
from pycocotools import mask as coco_mask

from maskrcnn_plus.data.formats import read
from maskrcnn_plus.results import write_results


def labels_of(folder, name):
    return cv2.imread(str(folder / f"out/labels/{name}.png"), cv2.IMREAD_UNCHANGED)


def test_labels_and_results_are_those_of_the_model(run, tmp_path, capsys):
    low, high = (140, 5, 20, 5, 30), (250, 10, 15, 20, 40)
    draw(tmp_path / "in/cells.png", low, high)
    draw(tmp_path / "in/none.png")
    assert run("--input", "in") == 0
    assert capsys.readouterr().out == "2 images, 2 objects, 0 failed; results in out\n"
    expected = np.zeros((40, 60), dtype=np.uint16)
    expected[5:20, 5:30] = 2  # the lower score, below
    expected[10:15, 20:40] = 1
    assert np.array_equal(labels_of(tmp_path, "cells"), expected)
    assert not labels_of(tmp_path, "none").any()
    best, other = results(tmp_path)
    assert (best["score"], other["score"]) == pytest.approx((250 / 255, 140 / 255))
    assert best["bbox"] == [20, 10, 20, 5]
    assert best["file_name"] == os.path.join("in", "cells.png")
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[5:20, 5:30] = 1  # whole, also where the other covers it
    assert np.array_equal(coco_mask.decode(other["segmentation"]), mask)
    assert cv2.imread(str(tmp_path / "out/overlays/cells.png")).shape == (40, 60, 3)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ([], 2),
        (["--score-threshold", "0.2"], 3),
        (["--score-threshold", "0.9"], 1),
        (["--opts", "dataset.score_threshold=0.9"], 1),
        (["--score-threshold", "0.2", "--opts", "dataset.score_threshold=0.9"], 3),
        (["--opts", "dataset.score_threshold=null"], 2),
    ],
)
def test_score_threshold(run, tmp_path, options, count):
    draw(tmp_path / "a.png", (100, 0, 5, 0, 5), (130, 10, 15, 0, 5), (240, 20, 25, 0, 5))
    assert run("--input", "a.png", *options) == 0
    assert len(results(tmp_path)) == count


def test_bad_files_are_reported_and_the_rest_is_done(run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    draw(tmp_path / "in/1_good.png", (200, 0, 5, 0, 5))
    draw(tmp_path / "in/9_good.png", (200, 0, 5, 0, 5))
    (tmp_path / "in/2_empty.png").touch()
    cv2.imwrite(str(tmp_path / "in/3_cut.png"), rng.integers(0, 256, (60, 60), dtype=np.uint8))
    content = (tmp_path / "in/3_cut.png").read_bytes()
    (tmp_path / "in/3_cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "in/4_text.png").write_text("not an image")
    assert run("--input", "in", "--report") == 1
    output = capsys.readouterr()
    assert "2 images, 2 objects, 3 failed" in output.out
    lines = [line for line in output.err.splitlines() if line.startswith("predict: ")]
    assert [line.split(":")[1].strip() for line in lines] == [
        os.path.join("in", name) for name in ("2_empty.png", "3_cut.png", "4_text.png")
    ]
    assert {entry["file_name"] for entry in results(tmp_path)} == {os.path.join("in", f"{k}_good.png") for k in (1, 9)}
    page = (tmp_path / "out/report.html").read_text()
    assert "Not predicted: 3" in page
    assert page.count("3_cut.png") == 1


def test_same_names_are_kept_apart(run, tmp_path):
    draw(tmp_path / "a/cell.png", (200, 0, 5, 0, 5))
    draw(tmp_path / "a/cell.bmp", (200, 10, 15, 0, 5))
    draw(tmp_path / "a/sub/cell.png", (200, 30, 35, 0, 5))
    draw(tmp_path / "b/cell.png", (200, 20, 25, 0, 5))
    assert run("--input", "a", "b", "--recursive") == 0
    names = ("cell", "cell_png", "sub/cell", "b_cell")
    assert [int(np.argwhere(labels_of(tmp_path, name))[0, 0]) for name in names] == [10, 0, 30, 20]
    assert len(list(tmp_path.glob("out/labels/**/*.png"))) == 4


def test_all_formats_tell_the_same(run, tmp_path):
    draw(tmp_path / "in/a.png", (140, 5, 20, 5, 30), (250, 25, 35, 20, 40))
    draw(tmp_path / "in/b.png", (200, 2, 7, 3, 13))
    formats = ("overlay", "labels", "coco", "csv", "geojson")
    assert run("--input", "in", "--format", *formats) == 0
    with open(tmp_path / "out/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    entries = results(tmp_path)
    assert [row["image"] for row in rows] == [entry["name"] for entry in entries] == ["a", "a", "b"]
    assert [float(row["area_px"]) for row in rows] == [coco_mask.area(entry["segmentation"]) for entry in entries]
    assert [float(row["mean_intensity"]) for row in rows] == [250, 140, 200]
    assert [row["centroid_x_px"] for row in rows] == ["30", "17.5", "8"]
    assert [row["centroid_y_px"] for row in rows] == ["30", "12.5", "4.5"]
    features = json.loads((tmp_path / "out/geojson/b.geojson").read_text())["features"]
    assert sorted(features[0]["geometry"]["coordinates"][0][:-1]) == [[3, 2], [3, 7], [13, 2], [13, 7]]
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.glob("out/[!.]*/*"))
    suffixes = {"overlays": "png", "labels": "png", "coco": "json", "csv": "csv", "geojson": "geojson"}
    assert found == sorted(f"{folder}/{name}.{suffix}" for folder, suffix in suffixes.items() for name in "ab")


def test_annotations_are_read_back_with_their_images(run, tmp_path):
    draw(tmp_path / "in/a.png", (140, 5, 20, 5, 30), (250, 25, 35, 20, 40))
    draw(tmp_path / "in/b.jpg")
    pages = np.zeros((2, 40, 60), dtype=np.uint8)
    pages[1, 4:8, :10] = 200
    tifffile.imwrite(tmp_path / "in/c.tif", pages, photometric="minisblack", metadata={"axes": "TYX"})
    formats = {"coco-dataset": "coco", "yolo": "yolo", "labelme": "labelme", "cvat": "cvat", "imagej": "imagej"}
    arguments = ("--input", "in", "--opts", "dataset.score_threshold=0.1", "--format", *formats)
    assert run(*arguments) == 0
    (tmp_path / "out/labelme/a.png").unlink()
    assert run(*arguments) == 0  # makes it again
    found = {}
    for folder, name in formats.items():
        data = read(tmp_path / "out" / folder)
        assert (data.format, data.problems, data.class_names) == (name, [], ["cell"])
        records = {Path(each["file_name"]).name: each for records in data.splits.values() for each in records}
        found[name] = {key: sorted(map(np.ndarray.tobytes, masks_of(each))) for key, each in records.items()}
        assert [len(each) for _, each in sorted(found[name].items())] == [2, 0, 0, 1]
        assert sorted(records) == ["a.png", "b.jpg", "c_p0001.png", "c_p0002.png"]
        assert np.array_equal(cv2.imread(records["c_p0002.png"]["file_name"], 0), pages[1])
        assert Path(records["a.png"]["file_name"]).samefile(tmp_path / "in/a.png")
    assert all(each == found["coco"] for each in found.values())


def test_pages_and_frames_are_images(run, tmp_path, capsys):
    pages = np.zeros((3, 40, 60), dtype=np.uint8)
    for k in range(3):
        pages[k, 5 * k : 5 * k + 4, :10] = 200
    tifffile.imwrite(
        tmp_path / "stack.tif", pages, imagej=True, resolution=(2, 2), metadata={"axes": "ZYX", "unit": "um"}
    )
    writer = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter_fourcc(*"FFV1"), 10, (64, 48))
    for k in range(3):
        frame = np.zeros((48, 64, 3), dtype=np.uint8)
        frame[4 * k : 4 * k + 4, :8] = 180
        writer.write(frame)
    writer.release()
    assert run("--input", "stack.tif", "film.avi", "--format", "labels", "csv") == 0
    assert capsys.readouterr().out.startswith("6 images, ")
    for k in range(3):
        assert np.array_equal(labels_of(tmp_path, f"stack_p{k + 1:04d}") > 0, pages[k] > 0)
        shown = labels_of(tmp_path, f"film/frame_{k + 1:06d}") == 1  # of several objects, as codecs blur a little
        assert shown[4 * k + 1, 3]
        assert not shown[4 * k + 10 :].any()
    header = (tmp_path / "out/csv/stack_p0001.csv").read_text().splitlines()
    assert header[0].startswith("image,id,class,score,x0_um,")
    assert header[1].split(",")[4:9] == ["0", "0", "5", "2", "10"]  # 10 x 4 px of 0.5 um
    assert "x0_px" in (tmp_path / "out/csv/film/frame_000001.csv").read_text()


def test_objects_are_followed_through_a_stack(run, tmp_path, capsys):
    pages = np.zeros((4, 40, 60), dtype=np.uint8)
    for k, page in enumerate(pages):
        page[5 + 6 * k : 15 + 6 * k, 10:20] = 200
    tifffile.imwrite(tmp_path / "film.tif", pages, imagej=True, metadata={"axes": "TYX"})
    places = ["--count-line", "0,20,60,20", "--count-zone", "0,30,60,30,60,40,0,40"]
    assert run("--input", "film.tif", "--track", "--format", "labels", *places) == 0
    assert capsys.readouterr().out == "4 images, 4 objects, 0 failed; results in out\n"
    assert np.array_equal(tifffile.imread(tmp_path / "out/labels/film.tif"), pages // 200)
    with open(tmp_path / "out/track_counts.csv", newline="") as file:
        counts = {row["where"]: row["count"] for row in csv.DictReader(file)}
    assert counts == {"everywhere": "1", "line 1 to the left": "0", "line 1 to the right": "1", "zone 1": "0"}
    with pytest.raises(SystemExit):
        run("--input", "film.tif", "--count-line", "0,20,60,20")
    assert "--count-line needs --track" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--input", "film.tif", "--track", "--count-zone", "1,2,3")
    assert "invalid list of x, y value: '1,2,3'" in capsys.readouterr().err


def test_pixel_size_goes_before_that_of_the_file(run, tmp_path):
    image = np.zeros((40, 60), dtype=np.uint8)
    image[:4, :10] = 200
    tifffile.imwrite(tmp_path / "a.tif", image, resolution=(20000, 20000), resolutionunit="CENTIMETER")
    assert run("--input", "a.tif", "--format", "csv") == 0
    assert float((tmp_path / "out/csv/a.csv").read_text().splitlines()[1].split(",")[8]) == 40 * 0.5**2
    assert run("--input", "a.tif", "--format", "csv", "--pixel-size", "2", "--overwrite") == 0
    assert float((tmp_path / "out/csv/a.csv").read_text().splitlines()[1].split(",")[8]) == 40 * 2**2


@pytest.mark.parametrize("tile", ["32", "off"])
def test_tiles_give_the_objects_of_the_whole_image(run, tmp_path, tile):
    rng = np.random.default_rng(0)
    corners = [(20 * (k // 3) + 3, 30 * (k % 3) + 4) for k in range(9)]
    cells = [(150 + 10 * k, y, y + 9, x, x + 10) for k, (y, x) in enumerate(corners)]
    draw(tmp_path / "a.png", *(cells[k] for k in rng.permutation(9)), height=70, width=95)
    assert run("--input", "a.png", "--tile", tile) == 0
    boxes = sorted(tuple(entry["bbox"]) for entry in results(tmp_path))
    assert boxes == sorted((x0, y0, x1 - x0, y1 - y0) for _, y0, y1, x0, x1 in cells)


def test_odd_name_ends_up_escaped_in_a_self_contained_report(run, tmp_path):
    draw(tmp_path / "in/a<b>&.png", (200, 0, 5, 0, 5))
    assert run("--input", "in", "--report") == 0
    page = (tmp_path / "out/report.html").read_text()
    assert "a&lt;b&gt;&amp;.png" in page
    assert "a<b>" not in page
    assert "http" not in page
    assert labels_of(tmp_path, "a<b>&").max() == 1


def test_only_results_are_left(run, tmp_path):
    draw(tmp_path / "in/a.png", (200, 0, 5, 0, 5))
    for options in ([], ["--overwrite"]):
        assert run("--input", "in", "--report", *options) == 0
        found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").glob("[!.]*"))
        assert found == ["coco", "labels", "overlays", "predictions.json", "report.html"]
        assert [path.name for path in sorted(tmp_path.glob("out/[!.]*/*"))] == ["a.json", "a.png", "a.png"]


def test_interruption_keeps_what_is_done_and_the_same_command_goes_on(run, tmp_path, capsys, monkeypatch):
    for k in range(4):
        draw(tmp_path / f"in/{k}.png", (200, 0, 5, 0, 5))
    calls = []

    def interrupted(*arguments, **options):
        calls.append(arguments[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write_results(*arguments, **options)

    monkeypatch.setattr("maskrcnn_plus.apps.predict_files.prediction_loop.write_results", interrupted)
    assert run("--input", "in", "--report") == 130
    assert [entry["file_name"] for entry in results(tmp_path)] == [os.path.join("in", f"{k}.png") for k in (0, 1)]
    assert "interrupted, 2 files left" in capsys.readouterr().err
    assert "interrupted after 2 images" in (tmp_path / "out/report.html").read_text()
    assert run("--input", "in", "--report") == 0
    assert calls == ["0", "1", "2", "2", "3"]
    assert capsys.readouterr().out.startswith("4 images (2 of them by an earlier run), 4 objects, 0 failed")
    assert [entry["image_id"] for entry in results(tmp_path)] == [1, 2, 3, 4]
    page = (tmp_path / "out/report.html").read_text()
    assert "interrupted" not in page
    assert page.count("<article") == 4
