"""tools/predict.py on channels, stacks, parts of images and slides, with a model that finds each grey value."""

import csv
import json

import numpy as np
import pytest
import tifffile
from slide_files import write_svs

from maskrcnn_plus.inference.predictor import Predictor

HEIGHT, WIDTH = 40, 60


def plane(*rectangles, height=HEIGHT, width=WIDTH):
    """Rectangles (value, y0, y1, x0, x1) on black, uint8."""
    image = np.zeros((height, width), dtype=np.uint8)
    for value, y0, y1, x0, x1 in rectangles:
        image[y0:y1, x0:x1] = value
    return image


def boxes_of(folder):
    found = json.loads((folder / "out/predictions.json").read_text())
    return sorted(tuple(int(value) for value in entry["bbox"]) for entry in found)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def calls(monkeypatch):
    """Sizes of the images that the predictor sees."""
    seen, predict = [], Predictor.predict

    def counted(self, image, **options):
        seen.append(image.shape[:2] if hasattr(image, "shape") else image)
        return predict(self, image, **options)

    monkeypatch.setattr(Predictor, "predict", counted)
    return seen


@pytest.mark.parametrize("channel", ["1", "DAPI", "dapi"])
@pytest.mark.parametrize("kind", ["ome", "imagej"])
def test_a_channel_by_its_number_from_0_or_its_name(run, tmp_path, channel, kind):
    channels = np.stack([plane((200, 0, 4, 0, 4)), plane((200, 10, 15, 20, 30)), plane((200, 30, 34, 0, 4))])
    names = ["GFP", "DAPI", "TxRed"]
    metadata = {"axes": "CYX", **({"Channel": {"Name": names}} if kind == "ome" else {"Labels": names})}
    tifffile.imwrite(tmp_path / "a.tif", channels, photometric="minisblack", metadata=metadata, **{kind: True})
    assert run("--input", "a.tif", "--channel", channel) == 0
    assert boxes_of(tmp_path) == [(20, 10, 10, 5)]


def test_an_unknown_channel_names_those_that_there_are(run, tmp_path, capsys):
    channels = np.stack([plane(), plane()])
    metadata = {"axes": "CYX", "Channel": {"Name": ["GFP", "DAPI"]}}
    tifffile.imwrite(tmp_path / "a.tif", channels, photometric="minisblack", metadata=metadata, ome=True)
    assert run("--input", "a.tif", "--channel", "RFP") == 2
    assert "no channel of the name 'RFP', its channels are 'GFP', 'DAPI'" in capsys.readouterr().err
    assert run("--input", "a.tif", "--channel", "2") == 2
    assert "picks channel 2 (from 0), the image has 2 channels" in capsys.readouterr().err


def test_a_z_stack_is_projected(run, tmp_path):
    planes = np.stack([plane((200, 0, 4, 0, 4)), plane((180, 10, 15, 20, 30)), plane((160, 10, 15, 20, 30))])
    tifffile.imwrite(tmp_path / "a.tif", planes, imagej=True, metadata={"axes": "ZYX"})
    assert run("--input", "a.tif", "--project", "max") == 0
    assert boxes_of(tmp_path) == [(0, 0, 4, 4), (20, 10, 10, 5)]
    assert run("--input", "a.tif", "--project", "mean", "--score-threshold", "0.3", "--overwrite") == 0
    assert boxes_of(tmp_path) == [(20, 10, 10, 5)]  # of value 113; the other has 67
    assert run("--input", "a.tif", "--project", "max") == 2  # not mixed with results of the mean


STACKS = [
    ("imagej", "TYX", {"finterval": 30.0}),
    ("imagej", "ZYX", {"spacing": 2.0}),
    ("imagej", "TZYX", {"spacing": 2.0, "finterval": 30.0}),
    ("ome", "TYX", {"TimeIncrement": 0.5, "TimeIncrementUnit": "min"}),
    ("ome", "ZYX", {"PhysicalSizeZ": 2000, "PhysicalSizeZUnit": "nm"}),
    ("ome", "ZTYX", {"PhysicalSizeZ": 2, "TimeIncrement": 30}),
]


@pytest.mark.parametrize(("kind", "axes", "facts"), STACKS)
def test_label_tiffs_have_the_axes_and_calibration_of_their_stack(run, tmp_path, kind, axes, facts):
    shape = [{"T": 2, "Z": 3}[axis] for axis in axes[:-2]]
    planes = np.stack([plane((200, 2 * k, 2 * k + 3, 0, 4 + k)) for k in range(np.prod(shape))])
    stack = planes.reshape(*shape, HEIGHT, WIDTH)
    if kind == "imagej":
        facts, resolution = {**facts, "unit": "um"}, dict(resolution=(4, 2))
    else:
        facts, resolution = {**facts, "PhysicalSizeX": 0.25, "PhysicalSizeY": 500, "PhysicalSizeYUnit": "nm"}, {}
    options = {kind: True, "metadata": {"axes": axes, **facts}, **resolution}
    tifffile.imwrite(tmp_path / "in.tif", stack, photometric="minisblack", **options)
    assert run("--input", "in.tif", "--format", "label-tiff") == 0
    assert sorted(path.name for path in (tmp_path / "out/label-tiff").glob("[!.]*")) == ["in.tif"]
    ordered = np.swapaxes(stack, 0, 1) if axes == "ZTYX" else stack  # ImageJ has T before Z
    with tifffile.TiffFile(tmp_path / "out/label-tiff/in.tif") as tiff:
        assert (tiff.is_imagej, tiff.series[0].axes) == (True, axes.replace("ZT", "TZ"))
        np.testing.assert_array_equal(tiff.asarray(), (ordered > 0).astype(np.uint16))
        known, tags = tiff.imagej_metadata, tiff.pages[0].tags
        assert known["unit"] == "um"
        per_pixel = [tags[f"{axis}Resolution"].value for axis in "XY"]
        assert [value[0] / value[1] for value in per_pixel] == pytest.approx([4, 2])
        assert known.get("spacing") == (pytest.approx(2.0) if "Z" in axes else None)
        assert known.get("finterval") == (pytest.approx(30.0) if "T" in axes else None)


def test_a_label_tiff_is_written_when_all_planes_are_there(run, tmp_path, capsys, monkeypatch):
    planes = np.stack([plane((200, 2 * k, 2 * k + 3, 0, 4)) for k in range(3)])
    tifffile.imwrite(tmp_path / "in.tif", planes, imagej=True, metadata={"axes": "TYX"})
    predict, seen = Predictor.predict, []

    def interrupted(self, image, **options):
        seen.append(image.shape)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return predict(self, image, **options)

    monkeypatch.setattr(Predictor, "predict", interrupted)
    assert run("--input", "in.tif", "--format", "label-tiff") == 130
    assert not (tmp_path / "out/label-tiff/in.tif").exists()
    assert run("--input", "in.tif", "--format", "label-tiff") == 0
    assert len(seen) == 4
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out/label-tiff/in.tif"), (planes > 0).astype(np.uint16))


def test_a_part_is_predicted_as_an_image_and_put_in_its_place(run, tmp_path, capsys):
    image = plane((200, 2, 8, 2, 8), (220, 20, 30, 35, 45), (240, 25, 40, 48, 60))
    resolution = dict(resolution=(1000, 1000), resolutionunit="CENTIMETER")  # 10 um
    tifffile.imwrite(tmp_path / "a.tif", image, **resolution)
    formats = ("coco", "labels", "counts", "csv", "geojson", "label-tiff")
    assert run("--input", "a.tif", "--roi", "30,18,20,20", "--format", *formats, "--report") == 0
    assert boxes_of(tmp_path) == [(35, 20, 10, 10), (48, 25, 2, 13)]
    labels = tifffile.imread(tmp_path / "out/label-tiff/a.tif")
    np.testing.assert_array_equal(labels, plane((2, 20, 30, 35, 45), (1, 25, 38, 48, 50)))
    (row,) = rows_of(tmp_path / "out/counts.csv")
    assert (row["cell"], float(row["covered"])) == ("2", (100 + 26) / 400)
    assert float(row["per_mm2"]) == 2 / (400 * 10**2 * 1e-6)
    assert [float(each["mean_intensity"]) for each in rows_of(tmp_path / "out/csv/a.csv")] == [240, 220]
    assert "30,18,20,20" in (tmp_path / "out/report.html").read_text()
    assert run("--input", "a.tif", "--roi", "30,18,20,23", "--overwrite") == 2
    assert "20 x 23 pixels at 30, 18 is not within the image of 60 x 40 pixels" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--input", "a.tif", "--roi", "30,18")
    assert "X,Y,WIDTH,HEIGHT" in capsys.readouterr().err
    assert run("--input", "a.tif", "--roi", "0,0,0,5") == 2
    assert "roi is (0, 0, 0, 5)" in capsys.readouterr().err


def slide_image():
    """Nine cells of their own value in the upper left quarter of an image; the rest is empty."""
    image = np.zeros((256, 320, 3), dtype=np.uint8)
    for k in range(9):
        y, x = 30 * (k // 3) + 20, 30 * (k % 3) + 18
        image[y : y + 10, x : x + 12] = 150 + 10 * k
    return image


def test_a_slide_is_predicted_by_tiles_with_its_pixel_size(run, tmp_path, calls, capsys):
    pytest.importorskip("tiffslide")
    (tmp_path / "in").mkdir()
    write_svs(tmp_path / "in/slide.svs", slide_image(), mpp="0.5")
    arguments = ("--input", "in", "--tile", "64", "--format", "coco", "csv", "geojson", "counts")
    assert run(*arguments) == 0
    expected = sorted((30 * (k % 3) + 18, 30 * (k // 3) + 20, 12, 10) for k in range(9))
    assert boxes_of(tmp_path) == expected
    every = len(calls)
    rows = rows_of(tmp_path / "out/csv/slide.csv")
    assert {float(row["area_um2"]) for row in rows} == {120 * 0.25}
    features = json.loads((tmp_path / "out/geojson/slide.geojson").read_text())["features"]
    assert features[0]["properties"]["measurements"]["Area µm^2"] == 30
    (row,) = rows_of(tmp_path / "out/counts.csv")
    assert float(row["per_mm2"]) == pytest.approx(9 / (256 * 320 * 0.25e-6), rel=1e-5)
    assert run(*arguments, "--skip-background", "--overwrite") == 0
    assert boxes_of(tmp_path) == expected
    assert len(calls) - every < every / 2
    assert f"{2 * every - len(calls)} of {every} tiles are background" in capsys.readouterr().err


def test_a_stopped_slide_goes_on_at_the_tile(run, tmp_path, monkeypatch, capsys):
    tifffile.imwrite(tmp_path / "a.tif", slide_image(), tile=(64, 64), photometric="rgb")
    arguments = ("--input", "a.tif", "--tile", "64", "--format", "coco", "csv", "labels")
    assert run(*arguments) == 0
    results = [path for path in tmp_path.glob("out/*/*") if ".records" not in path.parts]
    whole = {path: path.read_bytes() for path in results}
    predict, seen = Predictor.predict, []

    def interrupted(self, image, **options):
        seen.append(1)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return predict(self, image, **options)

    monkeypatch.setattr(Predictor, "predict", interrupted)
    assert run(*arguments, "--overwrite") == 130
    assert list(tmp_path.glob("out/.records/tiles/*")) == [tmp_path / "out/.records/tiles/a.jsonl"]
    capsys.readouterr()
    for path in whole:
        path.unlink(missing_ok=True)
    assert run(*arguments) == 0
    assert "4 of 30 tiles are there" in capsys.readouterr().err
    assert len(seen) == 30 + 1
    assert {path: path.read_bytes() for path in results} == whole
    assert not list(tmp_path.glob("out/.records/tiles/*"))
