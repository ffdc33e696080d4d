"""tools/convert.py: what it writes is read back as the same masks; what it refuses is one line and exit code 1."""

import errno
import importlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from annotation_folders import masks_of, rectangle, write_image
from PIL import Image
from slide_files import write_svs

from maskrcnn_plus.data.formats import read
from maskrcnn_plus.data.formats.label_maps import LabelMapFolder
from maskrcnn_plus.data.limits import pixel_limit
from maskrcnn_plus.data.windows import open_windows

MASKS = [rectangle(6, 4, 30, 20), rectangle(36, 22, 50, 35)]
LINES = ["0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5", "0 0.6 0.55 0.8333333 0.55 0.8333333 0.875 0.6 0.875"]


@pytest.fixture
def folder(tmp_path):
    for index in range(5):
        write_image(tmp_path / "data" / f"{index}.png")
        (tmp_path / "data" / f"{index}.txt").write_text("\n".join(LINES if index else []))
    (tmp_path / "data" / "classes.txt").write_text("cell\ndust\n")
    return tmp_path / "data"


@pytest.fixture
def convert(tmp_path, capsys):
    main = importlib.import_module("tools.convert").main

    def run(folder, *arguments):
        code = main([str(folder), "--output", str(tmp_path / "out"), *arguments])
        return code, capsys.readouterr(), tmp_path / "out"

    return run


def test_coco_is_read_back(folder, convert):
    code, told, output = convert(folder, "--to", "coco", "--val", "0.4")
    assert code == 0
    assert "train: 3 images" in told.out
    assert "val: 2 images" in told.out
    data = read(output)
    assert {split: len(records) for split, records in data.splits.items()} == {"train": 3, "val": 2}
    found = [masks_of(record) for records in data.splits.values() for record in records if record["annotations"]]
    assert len(found) == 4
    np.testing.assert_array_equal(found, [MASKS] * 4)
    assert json.loads((output / "annotations" / "train.json").read_text())["categories"][1]["name"] == "dust"
    assert not list(output.parent.glob(".*"))


def test_labels_are_read_back(folder, convert):
    code, _, output = convert(folder, "--to", "labels")
    assert code == 0
    records = [
        record
        for split in ("train", "val")
        for record in LabelMapFolder(str(output), split, "images", "labels", "raise")()
    ]
    assert sorted(len(record["annotations"]) for record in records) == [0, 2, 2, 2, 2]
    for record in records:
        label_map = np.asarray(Image.open(record["label_file_name"]))
        if label_map.any():
            np.testing.assert_array_equal([label_map == 1, label_map == 2], MASKS)


def test_what_labels_cannot_say_is_refused(folder, convert):
    (folder / "1.txt").write_text("\n".join([*LINES, LINES[0]]))
    code, told, output = convert(folder, "--to", "labels")
    assert (code, output.exists()) == (1, False)
    assert "cover all of it" in told.err


def test_several_classes_of_labels_are_read_back(folder, convert):
    (folder / "1.txt").write_text("\n".join([LINES[0], LINES[1].replace("0 ", "1 ", 1)]))
    code, _, output = convert(folder, "--to", "labels")
    assert code == 0
    data = read(output)
    assert data.format == "labels"
    found = {Path(each["file_name"]).stem: each for records in data.splits.values() for each in records}
    assert sorted(found) == ["0", "1", "2", "3", "4"]
    assert [data.class_names[each["category_id"]] for each in found["1"]["annotations"]] == ["cell", "dust"]
    np.testing.assert_array_equal(masks_of(found["1"]), MASKS)


@pytest.mark.parametrize("source", ["polygons", "masks"])
def test_yolo_is_read_back(folder, convert, tmp_path, source):
    if source == "masks":
        assert convert(folder, "--to", "labels")[0] == 0
        folder = (tmp_path / "out").rename(tmp_path / "labels")
    code, told, output = convert(folder, "--to", "yolo", "--val", "0.4")
    assert code == 0
    assert "holes" not in told.out
    data = read(output)
    assert (data.format, data.problems) == ("yolo", [])
    assert data.class_names[0] == ("cell" if source == "polygons" else "object")
    expected = {"train": 3, "val": 2} if source == "polygons" else {"train": 4, "val": 1}
    assert {split: len(records) for split, records in data.splits.items()} == expected
    found = [masks_of(record) for records in data.splits.values() for record in records if record["annotations"]]
    np.testing.assert_array_equal(found, [MASKS] * 4)


def test_polygons_beyond_the_image_keep_their_shape_in_yolo(tmp_path, convert):
    write_image(tmp_path / "data" / "a.png")
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [6, 4, 74, 30], "area": 1, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{**entry, "segmentation": [[6, 4, 80, 20, 6, 34]]}],
    }
    (tmp_path / "data" / "a.json").write_text(json.dumps(content))
    code, _, output = convert(tmp_path / "data", "--to", "yolo")
    assert code == 0
    paths = tmp_path / "data", output
    before, after = (masks_of(record)[0] for path in paths for (record,) in read(path).splits.values())
    assert (after != before).sum() < 0.02 * before.sum()


def test_what_yolo_cannot_say_is_said(tmp_path, convert):
    label_map = (MASKS[0] | MASKS[1]).astype(np.uint8)
    label_map[8:10, 10:14] = 0
    write_image(tmp_path / "data" / "images" / "a.png")
    (tmp_path / "data" / "labels").mkdir()
    label_map[0, 0] = 2
    Image.fromarray(label_map).save(tmp_path / "data" / "labels" / "a.png")
    code, told, output = convert(tmp_path / "data", "--to", "yolo")
    assert code == 0
    assert "1 objects have holes or several parts" in told.out
    (record,) = read(output).splits["train"]
    np.testing.assert_array_equal(masks_of(record)[0], MASKS[0])


def test_a_wrong_line_stops_or_is_left_out(folder, convert):
    (folder / "1.txt").write_text(f"{LINES[0]}\n7 0.5 0.5 0.1 0.1 0.2 0.2\n")
    code, told, output = convert(folder, "--to", "coco")
    assert (code, output.exists()) == (1, False)
    assert "1.txt, line 2" in told.err
    assert "Traceback" not in told.err
    code, told, _ = convert(folder, "--to", "coco", "--on-error", "skip")
    assert code == 0
    assert "left out:" in told.out


def test_thousands_of_wrong_lines_are_counted(folder, convert):
    (folder / "1.txt").write_text("\n".join([LINES[0], *["7 0.5 0.5 0.1 0.1 0.2 0.2"] * 2000]))
    _, told, _ = convert(folder, "--to", "coco", "--on-error", "skip")
    assert told.out.count("left out:") == 20
    assert "... and 1980 more" in told.out


def test_numbered_classes_are_joined_on_demand(folder, convert):
    (folder / "classes.txt").write_text("cell_1\ncell_2\n")
    code, told, output = convert(folder, "--to", "coco", "--merge-numbered")
    assert code == 0
    assert "are the class 'cell'" in told.out
    content = json.loads((output / "annotations" / "train.json").read_text())
    assert content["categories"] == [{"id": 1, "name": "cell"}]
    assert {entry["category_id"] for entry in content["annotations"]} == {1}


@pytest.mark.parametrize("case", ["nothing", "unknown", "missing", "full"])
def test_errors_are_a_line(folder, convert, tmp_path, case):
    (tmp_path / "empty").mkdir()
    if case == "full":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "file").touch()
    source = {"nothing": tmp_path / "empty", "missing": tmp_path / "no"}.get(case, folder)
    code, told, _ = convert(source, "--to", "coco", *(["--format", "yol"] if case == "unknown" else []))
    said = {"nothing": "Looked for", "unknown": "'yolo'", "missing": "does not exist", "full": "not empty"}[case]
    assert code == 1
    assert said in told.err
    assert "Traceback" not in told.err


def write_large(folder, pixels, labels, name="large"):
    for kind, array in (("images", pixels), ("labels", labels)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        planes = array if array.ndim == 2 or array.shape[2] == 3 else array.transpose(2, 0, 1)
        tifffile.imwrite(folder / kind / f"{name}.tif", planes, photometric="rgb" if array.shape[2:] == (3,) else None)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [None, 3, 5])
def test_tiles_are_the_image_and_its_masks(tmp_path, convert, dtype, channels):
    rng = np.random.default_rng(0)
    shape = (150, 230) if channels is None else (150, 230, channels)
    pixels = rng.integers(0, 200, shape).astype(dtype)
    labels = np.zeros((150, 230), dtype=np.uint16)
    for k, (y, x) in enumerate([(5, 5), (60, 90), (70, 200), (100, 60), (2, 150), (30, 40)], start=1):
        labels[y : y + 25, x : x + 28] = k
    write_large(tmp_path / "data", pixels, labels)
    code, told, output = convert(tmp_path / "data", "--to", "coco", "--tile", "100", "--val", "0.3")
    assert code == 0
    assert "1 images were cut into 6 tiles of at most 100 x 100 pixels" in told.out
    data = read(output)
    assert set(data.splits) == {"train", "val"}
    pasted, objects, num_parts = np.zeros_like(pixels), np.zeros_like(labels, dtype=int), 0
    for record in (record for records in data.splits.values() for record in records):
        y, x = map(int, re.search(r"_y(\d+)_x(\d+)\.", record["file_name"]).groups())
        with open_windows(record["file_name"]) as windows:
            height, width, _ = windows.shape
            tile = windows.read(0, 0, width, height)
            assert tile.dtype == pixels.dtype
        assert (height, width) == (record["height"], record["width"]) == (75, [76, 77, 77][x // 76])
        pasted[y : y + height, x : x + width] = tile.reshape(height, width, *shape[2:])
        for mask in masks_of(record):
            objects[y : y + height, x : x + width] += mask
            num_parts += 1
    np.testing.assert_array_equal(pasted, pixels)
    np.testing.assert_array_equal(objects, labels > 0)
    assert num_parts == sum(len(np.unique(labels[y : y + 75, x : x + w])) - 1 for y in (0, 75) for x, w in CUTS)


CUTS = (0, 76), (76, 77), (153, 77)


def test_tiles_without_objects_go_where_the_image_has_some(tmp_path, convert):
    labels = np.zeros((300, 100), dtype=np.uint16)
    write_large(tmp_path / "data", np.zeros((300, 100), np.uint8), labels, "negative")
    write_large(tmp_path / "data", np.zeros((40, 50), np.uint8), np.ones((40, 50), np.uint16), "small")
    labels = labels.copy()
    labels[10:30, 10:30] = 1
    write_large(tmp_path / "data", np.zeros((300, 100), np.uint8), labels)
    code, told, output = convert(tmp_path / "data", "--to", "labels", "--tile", "100", "--val", "0")
    assert code == 0
    assert "2 images were cut into 4 tiles of at most 100 x 100 pixels; 2 others have no objects" in told.out
    names = sorted(path.name for path in (output / "images").iterdir())
    negative = [f"negative_y{y:05d}_x00000.png" for y in (0, 100, 200)]
    assert names == ["large_y00000_x00000.png", *negative, "small.tif"]
    assert not list(tmp_path.glob(".*"))


def test_tiles_of_one_image_stay_in_one_split(tmp_path, convert):
    rng = np.random.default_rng(0)
    for name in "abcd":
        labels = np.zeros((200, 200), dtype=np.uint16)
        for k in range(16):
            labels[50 * (k // 4) + 10 : 50 * (k // 4) + 40, 50 * (k % 4) + 10 : 50 * (k % 4) + 40] = k + 1
        write_large(tmp_path / "data", rng.integers(0, 255, (200, 200), np.uint8), labels, name)
    code, _, output = convert(tmp_path / "data", "--to", "yolo", "--tile", "100", "--val", "0.25")
    assert code == 0
    images = {split: {path.name[0] for path in (output / "images" / split).iterdir()} for split in ("train", "val")}
    assert len(images["val"]) == 1
    assert not images["train"] & images["val"]


def test_slides_that_are_too_large_to_decode_are_cut_by_their_windows(tmp_path, convert):
    pixels = np.random.default_rng(0).integers(0, 255, (160, 240, 3)).astype(np.uint8)
    (tmp_path / "data").mkdir()
    write_svs(tmp_path / "data" / "liver.svs", pixels)
    ring = [[100, 20], [120, 20], [120, 40], [100, 40], [100, 20]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    feature["properties"]["classification"] = {"name": "Tumor"}
    (tmp_path / "data" / "liver.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    with pixel_limit(120 * 120):
        code, told, output = convert(tmp_path / "data", "--to", "coco")
        assert code == 1
        assert re.search(r"liver\.svs: 240 x 160 pixels are more than .*tools/convert\.py --tile", told.err)
        code, _, output = convert(tmp_path / "data", "--to", "coco", "--tile", "120", "--val", "0")
    assert code == 0
    (record,) = read(output).splits["train"]
    assert record["file_name"].endswith("liver_y00000_x00000.png")
    np.testing.assert_array_equal(np.asarray(Image.open(record["file_name"])), pixels[:80, :120])
    mask = np.zeros((80, 120), dtype=bool)
    mask[20:40, 100:120] = True
    np.testing.assert_array_equal(masks_of(record), [mask])


def test_tiles_that_are_too_small_are_refused(folder, convert):
    code, told, output = convert(folder, "--to", "coco", "--tile", "8")
    assert (code, output.exists()) == (1, False)
    assert "Tiles of 8 pixels are too small" in told.err


@pytest.mark.parametrize("kind", ["link", "mount"])
def test_a_link_or_a_mounted_folder_is_filled(folder, convert, tmp_path, monkeypatch, kind):
    place = tmp_path / "elsewhere" if kind == "link" else tmp_path / "out"
    place.mkdir()
    if kind == "link":
        (tmp_path / "out").symlink_to(place)
    else:  # where nothing can be renamed to

        def replace(source, target, original=os.replace):
            if str(target) == str(place):
                raise OSError(errno.EBUSY, "Device or resource busy", str(source))
            original(source, target)

        monkeypatch.setattr(os, "replace", replace)
        monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(place))
    code, told, output = convert(folder, "--to", "coco", "--val", "0.4")
    assert code == 0, told.err
    assert {split: len(records) for split, records in read(output).splits.items()} == {"train": 3, "val": 2}
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
    assert (tmp_path / "out").is_symlink() == (kind == "link")
