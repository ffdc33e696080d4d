"""What is written: label images, COCO results, tables and GeoJSON, and that files appear whole."""

import contextlib
import csv
import io
import json

import cv2
import numpy as np
import pytest
import tifffile
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskrcnn_plus.data.pixel_size import tiff_pixel_size
from maskrcnn_plus.masks.label_map import label_map_to_rles
from maskrcnn_plus.results import FORMATS, write_results
from maskrcnn_plus.results.coco import merge_coco
from maskrcnn_plus.results.counts import merge_counts
from maskrcnn_plus.results.labels import encode_png
from maskrcnn_plus.results.table import merge_tables

HEIGHT, WIDTH = 40, 50


def random_instances(seed, count, height=HEIGHT, width=WIDTH):
    """Overlapping rectangles in falling order of score; every fourth mask is empty."""
    rng = np.random.default_rng(seed)
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    boxes = torch.zeros(count, 4)
    for k in range(count):
        x, y = rng.integers(0, width - 12), rng.integers(0, height - 12)
        w, h = rng.integers(3, 12, 2)
        boxes[k] = torch.tensor([x, y, x + w, y + h])
        if k % 4 != 3:
            masks[k, y : y + h, x : x + w] = True
    instances = Instances((height, width))
    instances.pred_boxes = Boxes(boxes)
    instances.scores = torch.tensor(np.sort(rng.uniform(0.1, 1, count))[::-1].copy(), dtype=torch.float32)
    instances.pred_classes = torch.tensor(rng.integers(0, 3, count))
    instances.pred_masks = masks
    return instances


def image_of(height=HEIGHT, width=WIDTH, channels=3, dtype=np.uint8):
    return np.random.default_rng(9).integers(0, 250, (height, width, channels)).astype(dtype)


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_label_image_equals_a_loop_over_pixels(tmp_path):
    instances = random_instances(0, 20)
    path = write_results(tmp_path, "cell", instances, formats=["labels"])["labels"]
    assert path == tmp_path / "labels/cell.png"
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    masks = instances.pred_masks.numpy()
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint16)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            covering = np.flatnonzero(masks[:, y, x])
            if len(covering):
                expected[y, x] = covering[0] + 1  # scores fall, so the first has the highest
    assert labels.dtype == np.uint16
    assert np.array_equal(labels, expected)


def test_more_than_65535_objects_give_a_32_bit_tiff(tmp_path):
    count, height, width = 65_537, 260, 260
    pixels = np.arange(1, height * width + 1).reshape(width, height).T  # object k is pixel k in column-major order
    rles = label_map_to_rles(pixels, range(1, count + 1))
    instances = Instances((height, width), pred_masks_rle=rles)
    instances.scores = torch.ones(count)
    instances.pred_classes = torch.zeros(count, dtype=torch.int64)
    instances.pred_boxes = Boxes(torch.zeros(count, 4))
    write_results(tmp_path, "many", random_instances(0, 3), formats=["labels"])  # of an earlier run
    write_results(tmp_path, "many", instances, formats=["labels"])
    labels = tifffile.imread(tmp_path / "labels/many.tif")
    assert labels.dtype == np.uint32
    assert np.array_equal(labels.ravel(order="F")[:count], np.arange(1, count + 1))
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["many.tif"]


def test_results_load_in_pycocotools_with_the_same_masks(tmp_path):
    scenes = {"a": random_instances(2, 6), "sub/b": random_instances(3, 0), "c": random_instances(4, 9)}
    parts = [
        write_results(tmp_path, name, instances, formats=["coco"], file_name=f"in/{name}.png")["coco"]
        for name, instances in scenes.items()
    ]
    merge_coco(tmp_path / "predictions.json", parts)
    truth = COCO()
    images = [{"id": k, "file_name": name, "height": HEIGHT, "width": WIDTH} for k, name in enumerate(scenes, start=1)]
    truth.dataset = {"images": images, "annotations": [], "categories": [{"id": k} for k in range(3)]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        results = truth.loadRes(str(tmp_path / "predictions.json"))
    assert len(results.anns) == 15
    for k, (name, instances) in enumerate(scenes.items(), start=1):
        loaded = results.loadAnns(results.getAnnIds(imgIds=[k]))
        assert len(loaded) == len(instances)
        for index, entry in enumerate(loaded):
            x0, y0, x1, y1 = instances.pred_boxes.tensor[index].tolist()
            assert np.array_equal(coco_mask.decode(entry["segmentation"]), instances.pred_masks[index].numpy())
            assert entry["bbox"] == [x0, y0, x1 - x0, y1 - y0]
            assert entry["score"] == instances.scores[index].item()
            assert entry["category_id"] == instances.pred_classes[index].item()
            assert (entry["file_name"], entry["name"], entry["label_id"]) == (f"in/{name}.png", name, index + 1)


@pytest.mark.parametrize("count", [0, 1])
def test_merged_files_of_no_objects_are_sound(tmp_path, count):
    empty = random_instances(0, 0)
    written = [write_results(tmp_path, str(k), empty, formats=["coco", "csv"]) for k in range(count)]
    merge_coco(tmp_path / "all.json", [paths["coco"] for paths in written])
    merge_tables(tmp_path / "all.csv", [paths["csv"] for paths in written])
    assert json.loads((tmp_path / "all.json").read_text()) == []
    assert rows_of(tmp_path / "all.csv") == []
    assert (tmp_path / "all.csv").read_text().startswith("image,id,class,score,x0_px,")


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_table_equals_measures_of_dense_masks(tmp_path, channels, dtype):
    instances, image = random_instances(5, 9), image_of(channels=channels, dtype=dtype)
    path = write_results(tmp_path, "a", instances, image, formats=["csv"], class_names=["x", "y"])["csv"]
    rows = rows_of(path)
    assert list(rows[0]) == [
        *("image", "id", "class", "score", "x0_px", "y0_px", "x1_px", "y1_px", "area_px"),
        *("centroid_x_px", "centroid_y_px", "perimeter_px", "mean_intensity"),
    ]
    assert len(rows) == 9
    colours = image[:, :, :3] if dtype == np.uint8 else image  # of four channels of uint8 the last is alpha
    grey = colours.astype(np.float64).mean(axis=2)
    for index, row in enumerate(rows):
        mask = instances.pred_masks[index].numpy()
        category = instances.pred_classes[index].item()
        assert (row["image"], row["id"], row["class"]) == ("a", str(index + 1), ["x", "y", "class 2"][category])
        assert float(row["score"]) == pytest.approx(instances.scores[index].item(), rel=1e-6)
        box = [float(row[key]) for key in ("x0_px", "y0_px", "x1_px", "y1_px")]
        assert box == instances.pred_boxes.tensor[index].tolist()
        assert float(row["area_px"]) == mask.sum()
        if not mask.any():
            assert row["centroid_x_px"] == row["centroid_y_px"] == row["mean_intensity"] == ""
            continue
        y, x = np.argwhere(mask).mean(axis=0) + 0.5
        assert [float(row["centroid_x_px"]), float(row["centroid_y_px"])] == pytest.approx([x, y], rel=1e-7)
        assert float(row["mean_intensity"]) == pytest.approx(grey[mask].mean(), rel=1e-6)
        height, width = np.ptp(np.argwhere(mask), axis=0) + 1
        assert float(row["perimeter_px"]) == pytest.approx(2 * (height + width), rel=0.2)


def test_intensities_of_many_pixels_in_parts(tmp_path, monkeypatch):
    instances, image = random_instances(6, 12), image_of(channels=1)
    whole = write_results(tmp_path, "a", instances, image, formats=["csv"])["csv"].read_text()
    monkeypatch.setattr("maskrcnn_plus.rle.PIXELS_AT_ONCE", 50)
    monkeypatch.setattr("maskrcnn_plus.results.table._BAND_PIXELS", 7 * WIDTH)
    assert write_results(tmp_path, "a", instances, image, formats=["csv"])["csv"].read_text() == whole


def test_micrometres_scale_lengths_and_areas(tmp_path):
    instances = random_instances(7, 6)
    in_pixels = rows_of(write_results(tmp_path, "px", instances, formats=["csv"])["csv"])
    in_um = rows_of(write_results(tmp_path, "um", instances, formats=["csv"], pixel_size=0.25)["csv"])
    for pixels, um in zip(in_pixels, in_um, strict=True):
        assert pixels["mean_intensity"] == um["mean_intensity"] == ""
        for key, value in pixels.items():
            if key == "area_px":
                assert float(um["area_um2"]) == pytest.approx(float(value) / 16)
            elif key.endswith("_px"):
                scaled = um[f"{key[:-3]}_um"]
                assert scaled == value == "" or float(scaled) == pytest.approx(float(value) / 4, rel=1e-7)
    assert not any(key.endswith("_px") for key in in_um[0])


def test_merged_table_has_the_rows_of_all_each_in_its_unit(tmp_path):
    names = {"a": None, 'été, "b"\n': 0.5, "c\udcff": None}
    parts = [
        write_results(tmp_path, name, random_instances(k, k + 2), formats=["csv"], pixel_size=size)["csv"]
        for k, (name, size) in enumerate(names.items())
    ]
    merge_tables(tmp_path / "all.csv", parts)
    rows = rows_of(tmp_path / "all.csv")
    assert [row["image"] for row in rows] == ["a"] * 2 + ['été, "b"\n'] * 3 + ["c?"] * 4  # the last is no text
    assert [row["area_px"] == "" for row in rows] == [False] * 2 + [True] * 3 + [False] * 4
    assert [row["area_um2"] == "" for row in rows] == [True] * 2 + [False] * 3 + [True] * 4
    merge_tables(tmp_path / "px.csv", parts[::2])
    assert not any("um" in key for key in rows_of(tmp_path / "px.csv")[0] if key)


def test_geojson_has_a_closed_polygon_an_object_as_qupath_reads_it(tmp_path):
    instances = random_instances(8, 7)
    masks = instances.pred_masks
    masks[0] = False
    masks[0, 2:12, 3:13] = True
    masks[0, 5:8, 6:9] = False  # a hole
    masks[1, 38:40, 0:2] = True  # a second part
    content = write_results(tmp_path, "a", instances, formats=["geojson"], class_names=["x", "y", "z"])["geojson"]
    collection = json.loads(content.read_text())
    assert collection["type"] == "FeatureCollection"
    visible = [k for k in range(7) if masks[k].any()]
    assert len(collection["features"]) == len(visible) < 7
    for feature, k in zip(collection["features"], visible, strict=True):
        geometry, properties = feature["geometry"], feature["properties"]
        assert feature["type"] == "Feature"
        assert properties["objectType"] == "detection"
        assert properties["classification"]["name"] == "xyz"[instances.pred_classes[k]]
        assert all(0 <= value <= 255 for value in properties["classification"]["color"])
        measured = {"label_id": k + 1, "score": instances.scores[k].item(), "Area px^2": masks[k].sum().item()}
        assert measured.items() <= properties["measurements"].items()
        polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
        assert geometry["type"] == ("Polygon" if k != 1 else "MultiPolygon")
        painted = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        for rings in polygons:
            assert all(ring[0] == ring[-1] for ring in rings)
            for ring, value in zip(rings, [1, *[0] * (len(rings) - 1)], strict=True):
                doubled = 2 * np.array(ring[:-1]) - 1  # pixel centres at even coordinates, edges between them
                canvas = np.zeros((2 * HEIGHT + 2, 2 * WIDTH + 2), dtype=np.uint8)
                cv2.fillPoly(canvas, [doubled + 1], 1)
                painted[canvas[1::2, 1::2][:HEIGHT, :WIDTH] > 0] = value
        assert np.array_equal(painted, masks[k].numpy())
    assert len(polygons) >= 1
    assert len(collection["features"][0]["geometry"]["coordinates"]) == 2


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_of_no_objects(tmp_path, kind):
    written = write_results(tmp_path, "sub/none", random_instances(0, 0), image_of(), formats=[kind])
    assert next(iter(written)) == kind
    assert all(path.is_relative_to(tmp_path / FORMATS[kind]) and path.parent.name == "sub" for path in written.values())
    assert written[kind].stat().st_size > 0 or kind == "yolo"
    if kind == "geojson":
        assert json.loads(written[kind].read_text()) == {"type": "FeatureCollection", "features": []}


def test_image_may_be_a_file(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), image_of()[:, :, ::-1])
    instances, kinds = random_instances(1, 8), ["overlay", "csv"]
    from_file = write_results(tmp_path / "x", "a", instances, tmp_path / "a.png", formats=kinds)
    from_array = write_results(tmp_path / "y", "a", instances, image_of(), formats=kinds)
    assert all(from_file[kind].read_bytes() == from_array[kind].read_bytes() for kind in kinds)
    overlay = cv2.imread(str(from_file["overlay"]))[:, :, ::-1]
    assert overlay.shape == (HEIGHT, WIDTH, 3)
    assert not np.array_equal(overlay, image_of())


def test_wrong_input_is_refused_and_leaves_nothing(tmp_path):
    instances = random_instances(0, 3)
    with pytest.raises(ValueError, match=r"a: the image has size \(20, 20\)"):
        write_results(tmp_path, "a", instances, image_of(20, 20))
    with pytest.raises(ValueError, match="needs the image"):
        write_results(tmp_path, "a", instances, formats=["overlay"])
    with pytest.raises(ValueError, match="no format 'png'; choose of overlay"):
        write_results(tmp_path, "a", instances, formats=["png"])
    instances.remove("pred_masks")
    with pytest.raises(ValueError, match="no masks"):
        write_results(tmp_path, "a", instances, formats=["labels"])
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_results(tmp_path / "file", "a", random_instances(0, 3), formats=["labels"])
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


def test_png_keeps_values_and_channel_order():
    rng = np.random.default_rng(0)
    for image in (rng.integers(0, 65536, (7, 9)).astype(np.uint16), rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)):
        decoded = cv2.imdecode(np.frombuffer(encode_png(image), dtype=np.uint8), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(decoded if image.ndim == 2 else decoded[:, :, ::-1], image)


def test_counts_of_each_class_and_their_share_and_density(tmp_path):
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    labels[:4, :5], labels[10:14, :5], labels[20:30, 10:20] = 1, 2, 3
    instances = Instances((HEIGHT, WIDTH), scores=torch.tensor([0.9, 0.8, 0.7]), pred_classes=torch.tensor([1, 1, 0]))
    instances.pred_boxes = Boxes(torch.zeros(3, 4))
    instances.pred_masks_rle = label_map_to_rles(labels, [1, 2, 3])
    options = dict(formats=["counts"], class_names=["stroma", "tumour", "covered"])
    write_results(tmp_path, "a", instances, pixel_size=10, **options)
    write_results(tmp_path, "b", instances[:0], **options)
    write_results(tmp_path, "c", instances[:2], formats=["counts"], class_names=["other", "tumour"])
    merge_counts(tmp_path / "counts.csv", [tmp_path / f"counts/{name}.csv" for name in "abc"])
    first, empty, other = rows_of(tmp_path / "counts.csv")
    area = HEIGHT * WIDTH
    assert [first[key] for key in ("stroma", "tumour", "class covered", "total")] == ["1", "2", "0", "3"]
    assert float(first["covered"]) == pytest.approx(140 / area, rel=1e-5)
    assert float(first["tumour covered"]) == pytest.approx(40 / area, rel=1e-5)
    assert float(first["tumour per_mm2"]) == pytest.approx(2 / (area * 1e-4), rel=1e-5)
    assert (empty["total"], empty["tumour covered"], empty["tumour per_mm2"], empty["per_mm2"]) == ("0", "0", "", "")
    assert (other["other"], other["tumour"], other["stroma"], other["stroma covered"]) == ("0", "2", "0", "0")


@pytest.mark.parametrize(("count", "is_huge"), [(0, False), (3, False), (65536, False), (700, True)])
def test_label_tiff_has_the_size_of_pixels(tmp_path, monkeypatch, count, is_huge):
    """Of more than 65535 objects, or of a huge image, which is written by tiles, it is an OME-TIFF."""
    height, width = (1030, 600) if is_huge else (260, 256)
    if is_huge:
        monkeypatch.setattr("maskrcnn_plus.results.label_tiff.MAX_PIXELS", 1000)
    labels = np.arange(height * width, dtype=np.int32).reshape(height, width)
    labels[labels > count] = 0
    instances = Instances((height, width), scores=torch.linspace(1, 0.5, count), pred_classes=torch.zeros(count).long())
    instances.pred_masks_rle = label_map_to_rles(labels, np.arange(1, count + 1))
    instances.pred_boxes = Boxes(torch.zeros(count, 4))
    path = write_results(tmp_path, "a", instances, formats=["label-tiff"], pixel_size=0.2)["label-tiff"]
    with tifffile.TiffFile(path) as tiff:
        np.testing.assert_array_equal(tiff.asarray(), labels)
        assert tiff.series[0].axes == "YX"
        is_ome = count > 65535 or is_huge
        assert (tiff.is_imagej, tiff.is_ome, tiff.pages[0].is_tiled) == (not is_ome, is_ome, is_huge)
    assert tiff_pixel_size(str(path)) == pytest.approx(0.2)


@pytest.mark.parametrize("pixel_size", [None, 0.5])
@pytest.mark.parametrize("kind", ["detection", "annotation"])
def test_geojson_has_type_measures_and_colour(tmp_path, kind, pixel_size):
    instances = random_instances(3, 3)
    options = dict(pixel_size=pixel_size, object_type=kind, class_names=["a", "b", "c"])
    path = write_results(tmp_path, "x", instances, formats=["geojson"], **options)["geojson"]
    side, unit = pixel_size or 1, "µm" if pixel_size else "px"
    for feature, mask in zip(json.loads(path.read_bytes())["features"], instances.pred_masks, strict=True):
        properties = feature["properties"]
        assert properties["objectType"] == kind
        assert properties["measurements"][f"Area {unit}^2"] == pytest.approx(int(mask.sum()) * side**2)
        assert properties["measurements"][f"Perimeter {unit}"] > 0
        assert all(type(value) is int and 0 <= value <= 255 for value in properties["classification"]["color"])
    with pytest.raises(ValueError, match="object_type is 'cell'"):
        write_results(tmp_path, "x", instances, formats=["geojson"], object_type="cell")
