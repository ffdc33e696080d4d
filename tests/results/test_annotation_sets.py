"""Predictions as annotations: read back by the readers as the same masks, and by other libraries."""

import base64
import contextlib
import io
import json
import zipfile

import numpy as np
import pytest
import roifile
import tifffile
import torch
import yaml
from annotation_folders import masks_of, rectangle, write_image
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO
from scipy import ndimage

from maskrcnn_plus.data.formats import read
from maskrcnn_plus.results import FORMATS, MERGED, write_results
from maskrcnn_plus.results.annotation_sets import ANNOTATION_SETS

NAMES = ["cell", 'dust & "grit" <é>']


def blobs(seed, count=6):
    """Masks with holes and several parts, one of them empty."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.random((count, 40, 60)), (0, 2, 2))
    masks = smooth > np.quantile(smooth, 0.8, axis=(1, 2), keepdims=True)
    masks[count // 2] = False
    return masks


def solid(seed):
    """Masks of one part without holes."""
    pieces, count = ndimage.label(blobs(seed)[0])
    return np.array([ndimage.binary_fill_holes(pieces == k) for k in range(1, count + 1)])


def instances_of(masks):
    instances = Instances((40, 60))
    instances.pred_masks = torch.from_numpy(masks)
    instances.pred_boxes = Boxes(torch.zeros(len(masks), 4))
    instances.scores = torch.linspace(0.9, 0.5, len(masks))
    instances.pred_classes = torch.arange(len(masks)) % 2
    return instances


def write(root, kind, scenes, class_names=NAMES):
    """Write scenes {name: masks} and bring them together as a run does; the folder of the format."""
    parts = []
    for name, masks in scenes.items():
        image = write_image(root / "source" / f"{name}.png")
        written = write_results(root / "out", name, instances_of(masks), image, formats=[kind], class_names=class_names)
        assert set(written) == {kind, f"{kind} image"}
        parts.append(written[kind])
    if kind in MERGED:
        file, merge = MERGED[kind]
        (root / "out" / file).parent.mkdir(parents=True, exist_ok=True)
        merge(root / "out" / file, parts, class_names)
    assert not list((root / "out").rglob("*.tmp"))
    return root / "out" / FORMATS[kind]


@pytest.mark.parametrize("kind", ANNOTATION_SETS)
def test_a_round_trip(tmp_path, kind):
    draw = solid if kind == "yolo" else blobs
    scenes = {"a": draw(0), "plate 1/images/b": draw(1), "empty": np.zeros((0, 40, 60), dtype=bool)}
    data = read(write(tmp_path, kind, scenes))
    assert data.format == {"coco-dataset": "coco"}.get(kind, kind)
    assert data.problems == []
    found = {record["file_name"]: record for records in data.splits.values() for record in records}
    assert len(found) == 3
    for name, masks in scenes.items():
        (record,) = (each for file, each in found.items() if file.endswith(f"/{name}.png"))
        visible = masks.any(axis=(1, 2))
        expected = [NAMES[index % 2] for index in np.flatnonzero(visible)]
        assert [data.class_names[entry["category_id"]] for entry in record["annotations"]] == expected
        np.testing.assert_array_equal(np.reshape(masks_of(record), (-1, 40, 60)), masks[visible])


def test_yolo_keeps_the_outline_of_the_largest_part(tmp_path, caplog):
    mask = rectangle(6, 4, 30, 20) & ~rectangle(10, 8, 14, 12) | rectangle(40, 30, 45, 35)
    folder = write(tmp_path, "yolo", {"a": mask[None]})
    assert "1 of 1 objects have holes or several parts" in caplog.text
    (record,) = read(folder).splits["train"]
    np.testing.assert_array_equal(masks_of(record), [rectangle(6, 4, 30, 20)])
    line = (folder / "labels" / "a.txt").read_text().split()
    corners = np.array(line[1:], dtype=float).reshape(-1, 2) * [60, 40]
    np.testing.assert_allclose(sorted(corners.tolist()), [[6, 4], [6, 20], [30, 4], [30, 20]], atol=1e-5)
    assert yaml.safe_load((folder / "data.yaml").read_bytes()) == {"train": "images", "names": dict(enumerate(NAMES))}


def test_pycocotools_reads_the_coco_dataset(tmp_path):
    masks = blobs(2)
    folder = write(tmp_path, "coco-dataset", {"a": masks, "b": masks[:1]})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "annotations" / "instances_default.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == NAMES
    assert len(coco.anns) == 6
    for entry, mask in zip(coco.loadAnns(coco.getAnnIds(imgIds=[1])), masks[masks.any(axis=(1, 2))], strict=True):
        np.testing.assert_array_equal(coco.annToMask(entry), mask)
        y, x = np.nonzero(mask)
        assert entry["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
        assert entry["area"] == mask.sum()


def test_roifile_reads_the_sets_of_imagej(tmp_path):
    mask = rectangle(6, 4, 30, 20) & ~rectangle(10, 8, 14, 12)
    folder = write(tmp_path, "imagej", {"a": np.stack([rectangle(6, 4, 30, 20), mask])})
    plain, holed = roifile.roiread(folder / "a.zip")
    assert (plain.roitype, plain.properties["class"]) == (roifile.ROI_TYPE.TRACED, "cell")
    assert sorted(plain.coordinates().tolist()) == [[6, 4], [6, 20], [30, 4], [30, 20]]
    assert holed.composite
    assert [len(ring) - 1 for ring in holed.coordinates(multi=True)] == [4, 4]
    assert (holed.left, holed.top, holed.right, holed.bottom) == (6, 4, 30, 20)
    with zipfile.ZipFile(folder / "a.zip") as archive:
        assert archive.testzip() is None
        assert len(set(archive.namelist())) == 2


def test_labelme_by_hand(tmp_path):
    content = json.loads((write(tmp_path, "labelme", {"a": rectangle(6, 4, 30, 20)[None]}) / "a.json").read_text())
    (shape,) = content["shapes"]
    assert shape["points"] == [[6, 4], [29, 19]]
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))).tolist() == [[1] * 24] * 16
    assert (content["imagePath"], content["imageHeight"], content["imageWidth"]) == ("a.png", 40, 60)


def test_cvat_by_hand(tmp_path):
    mask = rectangle(6, 4, 9, 6)
    mask[4, 6] = False
    text = (write(tmp_path, "cvat", {"a": mask[None]}) / "annotations.xml").read_text()
    assert 'rle="1, 5" left="6" top="4" width="3" height="2"' in text


@pytest.mark.parametrize("kind", ANNOTATION_SETS)
def test_classes_without_names(tmp_path, kind):
    data = read(write(tmp_path, kind, {"a": solid(0)[:2]}, class_names=None))
    assert data.class_names == ["class 0", "class 1"]


@pytest.mark.parametrize(
    ("pixels", "suffix"),
    [
        (np.arange(2400, dtype=np.uint16).reshape(40, 60), ".png"),
        (np.arange(7200, dtype=np.uint8).reshape(40, 60, 3), ".png"),
        (np.arange(12000, dtype=np.uint16).reshape(40, 60, 5), ".tif"),
        (np.linspace(0, 1, 2400, dtype=np.float32).reshape(40, 60), ".png"),
        (np.linspace(-5, 9, 2400, dtype=np.float32).reshape(40, 60), ".tif"),
    ],
)
def test_an_image_in_memory_is_written_as_it_is(tmp_path, pixels, suffix):
    written = write_results(tmp_path, "a", instances_of(blobs(0)), pixels, formats=["labelme"])
    image = written["labelme image"]
    assert image == tmp_path / "labelme" / f"a{suffix}"
    found = tifffile.imread(image) if suffix == ".tif" else np.asarray(Image.open(image))
    expected = np.rint(pixels * 65535).astype(np.uint16) if pixels.dtype.kind == "f" and suffix == ".png" else pixels
    np.testing.assert_array_equal(found, expected)


def test_files_are_linked_and_replaced(tmp_path):
    source = write_image(tmp_path / "a.png")
    for _ in range(2):
        image = write_results(tmp_path, "a", instances_of(blobs(0)), source, formats=["imagej"])["imagej image"]
        assert image.samefile(source)
    with pytest.raises(ValueError, match="need the image"):
        write_results(tmp_path, "a", instances_of(blobs(0)), formats=["imagej"])
