"""tools/synthetic_cells.py writes a data set that can be registered as it is."""

import errno
import os

import numpy as np
import synthetic_cells
import tifffile
from detectron2.data import DatasetCatalog, MetadataCatalog
from fork_server import ROOT, Script

from maskrcnn_plus.data.images import read_image, read_label_map
from maskrcnn_plus.data.moving_nuclei import film_nuclei
from maskrcnn_plus.data.registration import register_label_maps
from maskrcnn_plus.data.synthetic import render_cells
from maskrcnn_plus.data.synthetic_nuclei import render_nuclei

TOOL = ROOT / "tools" / "synthetic_cells.py"


def test_folder_holds_the_rendered_cells_in_two_splits(tmp_path):
    tool = Script(TOOL, "--output", tmp_path, "--images", 3, "--val", 1, "--size", 96, "--seed", 5)
    text = tool.communicate()
    assert tool.returncode == 0, text
    dicts = {}
    for split in ("train", "val"):
        dicts[split] = DatasetCatalog.get(register_label_maps(f"tool_{split}", str(tmp_path), split))
        DatasetCatalog.remove(f"tool_{split}")
        MetadataCatalog.remove(f"tool_{split}")
    assert [len(dicts[split]) for split in ("train", "val")] == [2, 1]
    image, label_map, classes = render_cells(5, 2, 96, 96)
    (entry,) = dicts["val"]
    assert np.array_equal(read_image(entry["file_name"]), image)
    assert np.array_equal(read_label_map(entry["label_file_name"]), label_map)
    assert len(entry["annotations"]) == len(classes)


def test_more_validation_images_than_images_are_refused(tmp_path):
    tool = Script(TOOL, "--output", tmp_path / "new", "--images", 3, "--val", 4)
    text = tool.communicate()
    assert tool.returncode == 2
    assert "--val 4" in text
    assert not (tmp_path / "new").exists()


def test_nuclei_in_the_style_of_a_stain(tmp_path):
    arguments = ["--output", str(tmp_path), "--images", "1", "--val", "1", "--size", "64", "--style", "tissue"]
    assert synthetic_cells.main(arguments) == 0
    image, label_map = render_nuclei("tissue", 2, 0, 64, 64)
    assert np.array_equal(read_image(str(tmp_path / "images" / "tissue_0000.png")), image)
    assert np.array_equal(read_label_map(str(tmp_path / "labels" / "tissue_0000.png")), label_map)


def test_a_film_of_nuclei_with_their_identities(tmp_path):
    assert synthetic_cells.main(["--output", str(tmp_path), "--film", "3", "--size", "64"]) == 0
    images, labels = (tifffile.imread(tmp_path / f"{name}.tif") for name in ("film", "labels"))
    for k, (image, identities) in enumerate(film_nuclei(2, 3, 64, 64)):
        assert np.array_equal(images[k], image)
        assert np.array_equal(labels[k], identities)


def test_a_disk_that_is_full_is_told_with_the_file_and_leaves_no_half_one(tmp_path, monkeypatch, capsys):
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    assert synthetic_cells.main(["--output", str(tmp_path), "--images", "1", "--val", "0", "--size", "32"]) == 2
    assert f"{tmp_path}/images/cells_0000.png: No space left on device" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
