"""Data sets as one: order, repeats and kinds, against the single sets; and what does not fit together."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from maskrcnn_plus.data.check import DataError, checked_dataset
from maskrcnn_plus.data.image_facts import KIND
from maskrcnn_plus.data.mixture import register_mixture
from maskrcnn_plus.data.registration import register_label_maps


@pytest.fixture
def sets(tmp_path):
    """Names of two data sets: grey images with bright objects, and coloured ones with dark objects."""
    names = []
    for name, base, change in (("grey", (20, 20, 20), (150, 150, 150)), ("stained", (220, 180, 220), (-120, -90, -60))):
        labels = np.zeros((40, 50), np.uint16)
        labels[5:15, 5:20], labels[20:35, 25:45] = 1, 2
        for kind in ("images", "labels"):
            (tmp_path / name / kind).mkdir(parents=True)
        for k in range(2):
            image = np.where((labels > 0)[..., None], np.add(base, change), base).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / name / "images" / f"{name}{k}.png")
            Image.fromarray(labels).save(tmp_path / name / "labels" / f"{name}{k}.png")
        names.append(register_label_maps(f"mixture_{name}", str(tmp_path / name)))
    yield names
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in [name for name in catalog.list() if name.startswith("mixture_")]:
            catalog.remove(name)


def test_each_set_is_seen_as_often_as_asked(sets):
    name = register_mixture("mixture_all", sets, [1, 3])
    assert register_mixture("mixture_all", sets, [1, 3]) == name  # again
    records = checked_dataset(name)
    expected = [*DatasetCatalog.get(sets[0]), *DatasetCatalog.get(sets[1]) * 3]
    assert records == expected
    assert MetadataCatalog.get(name).thing_classes == ["object"]
    assert len(checked_dataset(register_mixture("mixture_once", sets))) == 4


def test_kinds_tell_colour_and_background(sets):
    records = DatasetCatalog.get(register_mixture("mixture_kinds", sets, [2, 1], kinds=True))
    kinds = [record[KIND] for record in records]
    assert kinds == ["mixture_grey, grey, dark background"] * 4 + ["mixture_stained, coloured, bright background"] * 2


def test_images_that_cannot_be_read_are_left_to_the_data_check(sets, tmp_path):
    DatasetCatalog.get(sets[0])  # the sizes of images are known from here on
    (tmp_path / "grey" / "images" / "grey0.png").write_bytes(b"no image")
    records = DatasetCatalog.get(register_mixture("mixture_broken", sets, kinds=True))
    assert [record[KIND] for record in records[:2]] == [
        "mixture_grey, unreadable",
        "mixture_grey, grey, dark background",
    ]


@pytest.mark.parametrize("repeats", [[1], [1, 0], [1, 1.5], [1, 2, 3]], ids=str)
def test_repeats_that_do_not_fit_are_refused(sets, repeats):
    with pytest.raises(DataError, match=r"mixture_bad.*repeats"):
        register_mixture("mixture_bad", sets, repeats)


def test_no_sets_and_other_classes_are_refused(sets, tmp_path):
    with pytest.raises(DataError, match="names of sets"):
        register_mixture("mixture_none", [])
    other = register_label_maps("mixture_other", str(tmp_path / "grey"), thing_classes=["cell"])
    with pytest.raises(DataError, match=r"mixture_other has the classes \['cell'\]"):
        DatasetCatalog.get(register_mixture("mixture_mixed", [sets[0], other]))
