"""Synthetic cells: the same everywhere, exact masks, and files that every reader can open."""

import os
import subprocess
import sys
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image as detectron2_read_image
from detectron2.utils.file_io import PathManager

from maskrcnn_plus.data.check import DataError, check_dataset
from maskrcnn_plus.data.images import ImageReadError, read_image, read_label_map
from maskrcnn_plus.data.synthetic import SYNTHETIC_CLASSES, register_synthetic_cells, render_cells

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def name():
    name = "test_synthetic_data"
    yield name
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_another_process_renders_the_same_pixels():
    code = (
        "import zlib, numpy as np; np.random.seed(5)\n"
        "from maskrcnn_plus.data.synthetic import render_cells\n"
        "image, labels, classes = render_cells(3, 4, 96, 128)\n"
        "print(zlib.crc32(image.tobytes()), zlib.crc32(labels.tobytes()), sorted(classes.items()))"
    )
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "1"}
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    render_cells(9, 9, 64, 64)
    image, labels, classes = render_cells(3, 4, 96, 128)
    assert output.strip() == f"{zlib.crc32(image.tobytes())} {zlib.crc32(labels.tobytes())} {sorted(classes.items())}"


def test_seed_and_index_make_different_images():
    images = [render_cells(*key, 64, 64)[0] for key in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for first in range(4):
        for second in range(first):
            assert np.abs(images[first].astype(int) - images[second]).mean() > 3


def test_rendering_leaves_the_global_generator_alone():
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    render_cells(0, 0, 64, 64)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("size", [(256, 256), (160, 320), (32, 32), (33, 71)])
def test_labels_are_consecutive_and_large_enough(size):
    for index in range(6):
        image, labels, classes = render_cells(1, index, *size)
        assert image.shape == (*size, 3)
        assert (image.dtype, labels.dtype, labels.shape) == (np.uint8, np.uint16, size)
        found, areas = np.unique(labels[labels > 0], return_counts=True)
        assert found.tolist() == list(range(1, len(found) + 1)) == sorted(classes)
        assert set(classes.values()) <= {0, 1, 2}
        assert (areas >= 30).all()
        assert len(found) <= 40
        if size == (256, 256):
            assert len(found) >= 6


def test_cells_touch_and_overlap():
    touching = 0
    occluded = 0
    for index in range(4):
        _, labels, _ = render_cells(2, index, 256, 256)
        labels = labels.astype(int)
        left, right = labels[:, :-1], labels[:, 1:]
        pairs = np.unique(np.stack([left, right])[:, (left != right) & (left > 0) & (right > 0)], axis=1)
        touching += pairs.shape[1]
        for label in np.unique(labels)[1:]:
            rows, columns = np.nonzero(labels == label)
            # A pixel of another cell in a row between two pixels of this one: the other one lies on top.
            for row in np.unique(rows):
                span = labels[row, columns[rows == row].min() : columns[rows == row].max()]
                occluded += int(((span != label) & (span > 0)).any())
    assert touching > 10
    assert occluded > 10


def test_classes_differ_in_shape_and_cells_from_background():
    elongation = {category: [] for category in range(3)}
    solidity = {category: [] for category in range(3)}
    for index in range(20):
        image, labels, classes = render_cells(5, index, 256, 256)
        assert image[labels > 0].mean() > 2 * image[labels == 0].mean()
        for label, category in classes.items():
            rows, columns = np.nonzero(labels == label)
            if rows.min() == 0 or columns.min() == 0 or rows.max() == 255 or columns.max() == 255:
                continue
            low, high = np.linalg.eigvalsh(np.cov(np.stack([rows, columns])))
            elongation[category].append(np.sqrt(high / low))
            # pixels of an ellipse with the same second moments, over pixels of the cell
            solidity[category].append(len(rows) / (4 * np.pi * np.sqrt(low * high)))
    assert all(len(values) > 40 for values in elongation.values())
    assert np.median(elongation[1]) > 1.5 * np.median(elongation[0])
    assert np.median(elongation[2]) < np.median(elongation[1])
    assert np.median(solidity[2]) < np.median(solidity[0])


@pytest.mark.parametrize("arguments", [(-1, 0, 64, 64), (0, -1, 64, 64), (0, 0, 31, 64), (0, 0, 64, 9000)])
def test_arguments_out_of_range(arguments):
    with pytest.raises(DataError, match=r"0 or more, height and width 32\.\.8192"):
        render_cells(*arguments)


def test_readers_open_synthetic_addresses(cache):
    image, labels, _ = render_cells(7, 2, 64, 96)
    address = "synthetic://7/2/64x96/image.png"
    np.testing.assert_array_equal(detectron2_read_image(address, "RGB"), image)
    np.testing.assert_array_equal(read_image(address), image)
    np.testing.assert_array_equal(read_label_map("synthetic://7/2/64x96/labels.png"), labels)
    with PathManager.open(address, "rb") as file:
        assert file.read(4) == b"\x89PNG"
    assert PathManager.get_local_path(address).startswith(str(cache))
    assert PathManager.isfile(address)
    assert PathManager.exists(address)
    assert not list(cache.rglob("*.tmp"))


@pytest.mark.parametrize(
    "address", ["synthetic://7/2/image.png", "synthetic://a/2/64x64/image.png", "synthetic://0/0/64x64/mask.png"]
)
def test_malformed_addresses(cache, address):
    assert not PathManager.isfile(address)
    with pytest.raises(DataError, match=r"expected synthetic://SEED/INDEX/HEIGHTxWIDTH/image\.png"):
        PathManager.get_local_path(address)
    with pytest.raises(ImageReadError, match="expected synthetic://"):
        read_image(address)
    with pytest.raises(DataError, match="can only be read"):
        PathManager.open("synthetic://0/0/64x64/image.png", "wb")


def test_a_cache_of_another_user_is_refused(cache, monkeypatch):
    PathManager.get_local_path("synthetic://0/0/64x64/image.png")
    user = os.getuid()
    folder = cache / f"maskrcnn_plus-{user}"
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    folder.rename(cache / f"maskrcnn_plus-{user + 1}")
    with pytest.raises(DataError, match="belongs to another user"):
        PathManager.get_local_path("synthetic://0/0/64x64/image.png")


def test_concurrent_readers_see_whole_files(cache):
    _, labels, _ = render_cells(1, 1, 64, 64)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(read_label_map, ["synthetic://1/1/64x64/labels.png"] * 16))
    assert all(np.array_equal(result, labels) for result in results)


def test_registered_dicts_describe_the_rendered_images(cache, name):
    from detectron2.config import LazyCall, instantiate

    config = LazyCall(register_synthetic_cells)(name=name, num_images=3, seed=4, size=(96, 128))
    assert instantiate(config) == name
    assert instantiate(config) == name
    assert MetadataCatalog.get(name).thing_classes == list(SYNTHETIC_CLASSES)
    dicts = DatasetCatalog.get(name)
    assert len(dicts) == 3
    assert check_dataset(dicts, num_classes=3, decode=True) == dicts
    for index, record in enumerate(dicts):
        _, labels, classes = render_cells(4, index, 96, 128)
        assert {entry["label_id"]: entry["category_id"] for entry in record["annotations"]} == classes
        for entry in record["annotations"]:
            rows, columns = np.nonzero(labels == entry["label_id"])
            assert entry["bbox"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert entry["area"] == len(rows)
    dicts[0]["annotations"].clear()
    assert DatasetCatalog.get(name)[0]["annotations"]
    with pytest.raises(DataError, match="already registered"):
        register_synthetic_cells(name, 4, 4, (96, 128))


@pytest.mark.parametrize(
    "arguments", [{"num_images": 0}, {"num_images": 1, "seed": -1}, {"num_images": 1, "size": (64,)}]
)
def test_registration_out_of_range(name, arguments):
    with pytest.raises(DataError):
        register_synthetic_cells(name, **arguments)
    assert name not in DatasetCatalog
