"""Label images that are none are told from those that are, by what they look like."""

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image
from scipy import ndimage

from maskrcnn_plus.data.images import read_label_map
from maskrcnn_plus.data.label_check import label_warnings, measure_labels
from maskrcnn_plus.data.registration import label_map_annotations, register_label_maps
from maskrcnn_plus.data.synthetic import render_cells

DATA = Path(__file__).resolve().parents[3] / "shared/data"


def discs(seed=0, side=160, number=12):
    """A true label image of discs that do not touch."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((side, side), np.uint16)
    y, x = np.mgrid[:side, :side]
    for k in range(number):
        centre = np.array([20 + 40 * (k // 4), 20 + 40 * (k % 4)]) + rng.uniform(-6, 6, 2)
        labels[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < rng.uniform(6, 13) ** 2] = k + 1
    return labels


def jpeg(labels):
    buffer = io.BytesIO()
    Image.fromarray((labels > 0).astype(np.uint8) * 255).save(buffer, "JPEG", quality=75)
    return np.array(Image.open(buffer))


def magnified(labels):
    return cv2.resize((labels * 20).astype(np.uint8), (400, 400), interpolation=cv2.INTER_LINEAR)


NONE = {
    "0 and 255": (lambda labels: (labels > 0).astype(np.uint8) * 255, "masks of classes", "1 object in 12 separate"),
    "0 and 1": (lambda labels: (labels > 0).astype(np.uint8), "masks of classes", "would make 12 objects"),
    "bool": (lambda labels: labels > 0, "masks of classes", "the value 1 makes 1 object"),
    "three classes": (
        lambda labels: np.where(labels > 0, labels % 3 + 1, 0).astype(np.uint8),
        "masks of classes",
        "3 objects in 12",
    ),
    "JPEG": (jpeg, "saved with losses", "rims and specks"),
    "resized": (magnified, "saved with losses", "nearest neighbours"),
    "background 1": (lambda labels: labels + 1, "background had a number", "the value 1 covers"),
    "background 255": (
        lambda labels: np.where(labels > 0, 0, 255).astype(np.uint8),
        "background had a number",
        "Exchange 0 and this value",
    ),
}


def measure(label_map):
    return measure_labels(label_map, label_map_annotations(label_map))


@pytest.fixture
def load(tmp_path, caplog):
    """Write label images as a data set, load it, and return the warnings."""

    def write_and_load(label_maps):
        root = tmp_path / f"set{len(list(tmp_path.iterdir()))}"
        for name in ("images", "labels"):
            (root / name).mkdir(parents=True)
        for k, labels in enumerate(label_maps):
            Image.fromarray(np.zeros(labels.shape, np.uint8)).save(root / f"images/{k}.png")
            Image.fromarray(labels).save(root / f"labels/{k}.png")
        caplog.clear()
        DatasetCatalog.get(register_label_maps(f"label_check_{root.parent.name}_{root.name}", str(root)))
        return [record.getMessage() for record in caplog.records]

    return write_and_load


@pytest.mark.parametrize("case", NONE)
@pytest.mark.parametrize("images", [1, 4])
def test_each_kind_is_one_warning_with_its_look_and_remedy(load, case, images):
    spoil, kind, detail = NONE[case]
    (warning,) = load([spoil(discs(seed)) for seed in range(images)])
    assert kind in warning
    assert detail in warning
    assert warning.startswith(f"{images} of {images} label images (")
    assert "labels/0.png" in warning


def test_one_mask_of_classes_among_label_images_is_named(load):
    (warning,) = load([discs(0), discs(1), (discs(2) > 0).astype(np.uint16), discs(3), discs(4)])
    assert warning.startswith("1 of 5 label images (")
    assert "labels/2.png" in warning


def test_label_images_are_passed(load):
    touching = np.arange(1, 65, dtype=np.uint16).reshape(8, 8).repeat(16, 0).repeat(16, 1)
    one = (discs(number=1) > 0).astype(np.uint8) * 255
    assert load([discs(0), discs(1), np.zeros((30, 30), np.uint8)]) == []
    assert load([touching]) == []
    assert load([one, one]) == []  # an object an image, whatever its number
    assert load([discs(0, number=2), discs(1) * 1000]) == []


def test_objects_in_pieces_are_passed(load):
    """Nuclei behind others: some of an image's objects are cut in two."""
    labels = discs(0)
    labels[18:22] = labels[58:61] = 0
    assert load([labels, discs(1)]) == []


def test_measures_equal_a_loop_over_the_objects():
    rng = np.random.default_rng(3)
    labels = ndimage.zoom(rng.integers(0, 9, (12, 14)), 4, order=0).astype(np.int32)
    labels[rng.random(labels.shape) < 0.05] = 9
    found = measure(labels)
    ids = [k for k in np.unique(labels) if k]
    pieces = thin = 0
    for k in ids:
        parts, number = ndimage.label(labels == k, structure=np.ones((3, 3)))
        sizes = np.bincount(parts.ravel())[1 : number + 1]
        pieces += max(int((sizes >= max(4, 0.02 * sizes.sum())).sum()), 1)
        thin += not ndimage.binary_erosion(labels == k).any()
    assert (found["objects"], found["counted"], found["pieces"], found["thin"]) == (len(ids), len(ids), pieces, thin)
    assert json.loads(json.dumps(found)) == found
    assert measure(np.zeros((5, 5), np.int32)) == {"objects": 0}
    assert measure(np.ones((1, 3), np.int32))["thin"] == 1


def test_synthetic_cells_are_passed():
    assert label_warnings({str(k): measure(render_cells(0, k, 192, 256)[1]) for k in range(8)}) == []


@pytest.mark.parametrize(
    "name",
    ["nuclei_fluo", "nuclei_rgb", "nuclei_tissue_fluo", "nuclei_he", "nuclei_mixed", "nuclei_16bit", "cells_phase"],
)
def test_real_label_images_are_passed(name):
    files = sorted((DATA / name / "labels").glob("*.png"))
    if not files:
        pytest.skip(f"no label images at {DATA / name}")
    chosen = files[:: max(len(files) // 6, 1)]
    assert label_warnings({path.name: measure(read_label_map(str(path))) for path in chosen}) == []
