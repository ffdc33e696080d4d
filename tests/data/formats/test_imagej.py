"""ROIs of ImageJ: shapes against masks drawn by hand, layouts, and archives that are damaged or endless."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import roifile
import tifffile
from annotation_folders import masks_of, read_one, rectangle, write_image
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats import read, sniff

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "formats" / "bladder_imagej_roi"
SQUARE = np.array([[6, 4], [30, 4], [30, 20], [6, 20]])
Y, X = np.mgrid[:40, :60] + 0.5


def polygon(points=SQUARE, kind=ROI_TYPE.POLYGON, **further):
    roi = ImagejRoi.frompoints(points, name="0012-0018")
    roi.roitype = kind
    for name, value in further.items():
        setattr(roi, name, value)
    return roi


def box(kind, **further):
    return ImagejRoi(roitype=kind, left=6, top=4, right=30, bottom=20, name="b", **further)


def sub_pixel(kind):
    options = ROI_OPTIONS.SUB_PIXEL_RESOLUTION
    return box(kind, options=options, xd=5.7, yd=4.2, widthd=24, heightd=16)


def composite(*rings):
    """A shape of several rings, as ImageJ writes it: 0 moves, 1 draws, 4 closes."""
    path = []
    for ring in rings:
        path += [0, *ring[0], *(value for point in ring[1:] for value in (1, *point)), 4]
    path = np.array(path, dtype=np.float32)
    return box(ROI_TYPE.RECT, multi_coordinates=path, shape_roi_size=len(path))


def write(root, *rois, name="one_RoiSet.zip", image="one.tif"):
    write_image(root / image)
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".zip":
        file.unlink(missing_ok=True)
        roifile.roiwrite(file, rois, name=[f"{k}.roi" for k in range(len(rois))])
    else:
        for k, roi in enumerate(rois):
            roi.tofile(file if len(rois) == 1 else file.with_name(f"{k}.roi"))
    return root


HOLE = [[10, 8], [20, 8], [20, 16], [10, 16]]
PART = [[40, 30], [50, 30], [50, 36], [40, 36]]


@pytest.mark.parametrize(
    ("roi", "mask"),
    [
        (polygon(), rectangle(6, 4, 30, 20)),
        (polygon(kind=ROI_TYPE.FREEHAND), rectangle(6, 4, 30, 20)),
        (polygon(kind=ROI_TYPE.TRACED), rectangle(6, 4, 30, 20)),
        (polygon(SQUARE + np.float32(0.3)), rectangle(6, 4, 30, 20)),
        (polygon(SQUARE + np.float32(0.7)), rectangle(7, 5, 31, 21)),
        (polygon(SQUARE * 4 - 20), rectangle(4, 0, 60, 40)),
        (box(ROI_TYPE.RECT), rectangle(6, 4, 30, 20)),
        (sub_pixel(ROI_TYPE.RECT), rectangle(6, 4, 30, 20)),
        (
            composite(SQUARE.tolist(), HOLE, PART),
            rectangle(6, 4, 30, 20) & ~rectangle(10, 8, 20, 16) | rectangle(40, 30, 50, 36),
        ),
        (box(ROI_TYPE.OVAL), ((X - 18) / 12) ** 2 + ((Y - 12) / 8) ** 2 <= 1),
        (sub_pixel(ROI_TYPE.OVAL), ((X - 17.7) / 12) ** 2 + ((Y - 12.2) / 8) ** 2 <= 1),
        (polygon(np.array([[30, 4], [54, 20], [30, 36], [6, 20]])), abs(X - 30) / 24 + abs(Y - 20) / 16 < 1),
    ],
)
def test_shapes_are_the_pixels_drawn_by_hand(tmp_path, roi, mask):
    record, data = read_one(write(tmp_path, roi))
    assert sniff(tmp_path) == ["imagej"]
    assert data.problems == []
    np.testing.assert_array_equal(masks_of(record)[0], mask)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("one.tif", "one.zip"),
        ("one.tif", "one.roi"),
        ("one.tif", "RoiSet.zip"),
        ("one.tif", "RoiSet_one.zip"),
        ("images/one.tif", "rois/one.zip"),
        ("one.tif", "one/0001.roi"),
        ("one.tif", "one_roiset/0001.roi"),
        ("one/image.tif", "one/0001.roi"),
    ],
)
def test_layouts(tmp_path, image, name):
    record, data = read_one(write(tmp_path, polygon(), name=name, image=image))
    assert data.problems == []
    assert record["file_name"] == str(tmp_path / image)
    np.testing.assert_array_equal(masks_of(record), [rectangle(6, 4, 30, 20)])


def test_sets_go_to_their_images_and_others_are_said(tmp_path):
    for name in ("one", "two"):
        write(tmp_path, polygon(), polygon(), name=f"{name}.zip", image=f"{name}.tif")
    write_image(tmp_path / "three.tif")
    (tmp_path / "._one.zip").write_bytes(b"\0\5\x16\7")
    data = read(tmp_path)
    assert [len(record["annotations"]) for record in data.splits["all"]] == [2, 2]
    assert any("three.tif" in note for note in data.notes)
    write(tmp_path, polygon(), name="four.zip", image="one.tif")
    (problem,) = read(tmp_path).problems
    assert "four.zip: its image is not there" in problem
    assert "one_RoiSet.zip if it is one.tif" in problem


def test_the_image_is_the_one_in_a_folder_of_images(tmp_path):
    for folder in ("label masks", "overlay"):
        write_image(tmp_path / folder / "one.tif", 41)
    record, _ = read_one(write(tmp_path, polygon(), name="zips/one.zip", image="tissue images/one.png"))
    assert record["file_name"] == str(tmp_path / "tissue images" / "one.png")


def test_the_class_is_a_property(tmp_path):
    record, data = read_one(write(tmp_path, polygon(props="score: 0.5\nclass: NA\n"), polygon(props="class: 7\n")))
    assert [data.class_names[entry["category_id"]] for entry in record["annotations"]] == ["NA", "7"]


def test_what_has_no_area_is_said(tmp_path):
    points = polygon(kind=ROI_TYPE.POINT)
    line = ImagejRoi(roitype=ROI_TYPE.LINE, x1=1, y1=1, x2=9, y2=9, name="l")
    text = box(ROI_TYPE.RECT, subtype=ROI_SUBTYPE.TEXT)
    record, data = read_one(write(tmp_path, polygon(), points, line, text))
    assert len(record["annotations"]) == 1
    assert data.problems == []
    for word in ("a point", "a line", "a text"):
        assert any(word in note for note in data.notes)


def test_slices_of_a_stack_and_shapes_outside_are_named(tmp_path):
    data = read(write(tmp_path, polygon(position=1), polygon(position=2)))
    assert "2 slices" in data.problems[0]
    data = read(write(tmp_path, polygon(SQUARE + 60), polygon(SQUARE + 3000), polygon(position=1)))
    assert [len(data.problems), len(data.splits["all"][0]["annotations"])] == [2, 1]
    assert "one_RoiSet.zip, 0.roi: it is outside of the image" in data.problems[0]
    assert "one_RoiSet.zip, 1.roi: it is outside of the image" in data.problems[1]


def test_no_rois(tmp_path):
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.writestr("a.txt", "no ROI")
    write_image(tmp_path / "one.tif")
    with pytest.raises(DataError, match="no annotations recognised"):
        sniff(tmp_path)
    with pytest.raises(DataError, match="holds no ROIs"):
        read(tmp_path, "imagej")


def test_endless_archives_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("maskrcnn_plus.data.formats.imagej._MAX_ARCHIVE", 1 << 22)
    write_image(tmp_path / "one.tif")
    with zipfile.ZipFile(tmp_path / "one.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for k in range(5):
            archive.writestr(f"{k}.roi", b"Iout" + b"\0" * (1 << 20))
    assert (tmp_path / "one.zip").stat().st_size < 1 << 14
    assert "one.zip cannot be read" in read(tmp_path).problems[0]


@pytest.mark.parametrize("name", ["one.zip", "one.roi"])
def test_damaged_files_never_crash(tmp_path, name):
    write(tmp_path, composite(SQUARE.tolist(), HOLE), name=name)
    whole = (tmp_path / name).read_bytes()
    for seed in range(60):
        rng, content = np.random.default_rng(seed), bytearray(whole)
        for place in rng.integers(len(whole), size=rng.integers(1, 5)):
            content[place] = rng.integers(256)
        (tmp_path / name).write_bytes(content[: len(whole) if seed % 3 else rng.integers(len(whole))])
        try:
            data = read(tmp_path, "imagej")
        except DataError as error:
            assert str(tmp_path) in str(error)  # noqa: PT017
            continue
        assert all(name in problem for problem in data.problems)
        assert data.problems or data.notes or data.splits["all"][0]["annotations"]


@pytest.mark.skipif(not REAL.is_dir(), reason="the folder is not there")
def test_a_real_folder():
    data = read(REAL)
    records = {Path(record["file_name"]).name: record for record in data.splits["all"]}
    assert {name: len(record["annotations"]) for name, record in records.items()} == {
        "human_bladder_01.tif": 24,
        "human_bladder_02.tif": 3,
    }
    shares = []
    for record in records.values():
        truth = tifffile.imread(record["file_name"])  # label image of the same objects, drawn one over the other
        for mask in masks_of(record):
            label = np.bincount(truth[mask])[1:].argmax() + 1
            shares.append((mask & (truth == label)).sum() / (mask & (truth == label) | (truth == label)).sum())
    assert min(shares) > 0.9


def test_an_image_of_points_is_not_one_without_objects(tmp_path):
    write(tmp_path, polygon(kind=ROI_TYPE.POINT), name="two.zip", image="two.tif")
    record, data = read_one(write(tmp_path, polygon(), name="one.zip"))
    assert record["file_name"].endswith("one.tif")
    assert any("no object could be used" in note and "two.tif" in note for note in data.notes)
