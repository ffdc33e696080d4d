"""Folders of label images: both layouts, boxes and areas against a naive loop, and every mistake by file name."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.registration import label_map_annotations, register_label_maps

NUCLEI = Path(__file__).resolve().parents[3] / "shared" / "data" / "nuclei_fluo"


@pytest.fixture
def name():
    name = "test_registration_data"
    yield name
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)


def random_labels(seed, height=20, width=30, count=6):
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), dtype=np.uint16)
    for label in rng.choice(np.arange(1, 400), size=count, replace=False):
        y, x = rng.integers(height), rng.integers(width)
        labels[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = label
    return labels


def write_pair(folder, stem, labels, image_suffix="png", label_suffix="png"):
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros(labels.shape, dtype=np.uint8)).save(folder / "images" / f"{stem}.{image_suffix}")
    Image.fromarray(labels).save(folder / "labels" / f"{stem}.{label_suffix}")


def naive_annotations(labels):
    found = {}
    for y, row in enumerate(labels.tolist()):
        for x, label in enumerate(row):
            if label:
                x0, y0, x1, y1, area = found.get(label, (x, y, x + 1, y + 1, 0))
                found[label] = (min(x0, x), min(y0, y), max(x1, x + 1), max(y1, y + 1), area + 1)
    return {label: ([float(value) for value in box], area) for label, (*box, area) in sorted(found.items())}


@pytest.mark.parametrize("offset", [0, 100_000, 2_000_000_000])
@pytest.mark.parametrize("background", [True, False])
def test_annotations_equal_a_naive_loop(offset, background):
    labels = random_labels(3).astype(np.int64)
    labels[labels > 0] += offset
    if not background:
        labels[labels == 0] = 500
    annotations = label_map_annotations(labels)
    expected = naive_annotations(labels)
    assert [entry["label_id"] for entry in annotations] == list(expected)
    assert {entry["label_id"]: (entry["bbox"], entry["area"]) for entry in annotations} == expected
    assert all(entry["bbox_mode"] == BoxMode.XYXY_ABS and entry["category_id"] == 0 for entry in annotations)


def test_annotations_of_empty_and_single_pixel_maps():
    assert label_map_annotations(np.zeros((4, 5), dtype=np.uint16)) == []
    assert label_map_annotations(np.zeros((0, 5), dtype=np.uint16)) == []
    (entry,) = label_map_annotations(np.full((1, 1), 7, dtype=np.uint8), {7: 2})
    assert (entry["bbox"], entry["area"], entry["label_id"], entry["category_id"]) == ([0, 0, 1, 1], 1, 7, 2)


def test_split_file_layout(tmp_path, name):
    labels = {stem: random_labels(seed) for seed, stem in enumerate("abc")}
    write_pair(tmp_path, "a", labels["a"], "jpg", "tif")
    write_pair(tmp_path, "b", labels["b"], "tif")
    write_pair(tmp_path, "c", labels["c"])
    (tmp_path / "images" / ".hidden.png").write_text("")
    (tmp_path / "images" / "notes.txt").write_text("")
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["c", "a"], "val": ["b"]}))
    assert register_label_maps(name, str(tmp_path), "train", thing_classes=["nucleus"]) == name
    dicts = DatasetCatalog.get(name)
    assert [record["image_id"] for record in dicts] == ["c", "a"]
    for record in dicts:
        stem = record["image_id"]
        assert (record["height"], record["width"]) == (20, 30)
        assert Path(record["file_name"]).stem == stem
        assert Path(record["label_file_name"]).parent == tmp_path / "labels"
        assert [entry["label_id"] for entry in record["annotations"]] == list(naive_annotations(labels[stem]))
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["nucleus"]
    assert metadata.evaluator_type == "label_map"
    assert (metadata.root, metadata.split) == (str(tmp_path), "train")


def test_folder_layout_and_no_split(tmp_path, name):
    write_pair(tmp_path / "train", "a", random_labels(0))
    write_pair(tmp_path / "val", "b", random_labels(1))
    register_label_maps(name, str(tmp_path), "val")
    (record,) = DatasetCatalog.get(name)
    assert record["file_name"] == str(tmp_path / "val" / "images" / "b.png")
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    register_label_maps(name, str(tmp_path / "train"))
    assert [record["image_id"] for record in DatasetCatalog.get(name)] == ["a"]


def test_registration_is_lazy_repeatable_and_cached(tmp_path, name):
    root = str(tmp_path / "later")
    register_label_maps(name, root)
    register_label_maps(name, root)
    with pytest.raises(DataError, match=r"later' does not exist.*dataset\.root="):
        DatasetCatalog.get(name)
    write_pair(tmp_path / "later", "a", random_labels(0))
    first = DatasetCatalog.get(name)
    expected = [dict(record) for record in DatasetCatalog.get(name)]
    first[0]["annotations"][0]["bbox"][0] = -5
    first[0]["annotations"].pop()
    first[0]["width"] = 0
    (tmp_path / "later" / "labels" / "a.png").unlink()
    assert DatasetCatalog.get(name) == expected
    with pytest.raises(DataError, match="already registered"):
        register_label_maps(name, str(tmp_path / "other"))
    with pytest.raises(DataError, match="already registered"):
        register_label_maps(name, root, thing_classes=["cell"])


def test_taken_name_and_several_classes(tmp_path, name):
    with pytest.raises(DataError, match="one class"):
        register_label_maps(name, str(tmp_path), thing_classes=["a", "b"])
    with pytest.raises(ValueError, match="on_error='ignore'"):
        register_label_maps(name, str(tmp_path), on_error="ignore")
    DatasetCatalog.register(name, list)
    with pytest.raises(DataError, match="already registered by something else"):
        register_label_maps(name, str(tmp_path))


def test_unknown_split_lists_what_there_is(tmp_path, name):
    write_pair(tmp_path, "a", random_labels(0))
    write_pair(tmp_path / "test", "b", random_labels(1))
    (tmp_path / "splits.json").write_text('{"train": ["a"]}')
    register_label_maps(name, str(tmp_path), "trian")
    with pytest.raises(DataError, match=r"no split 'trian'. Available: train, test. Did you mean 'train'"):
        DatasetCatalog.get(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[1]", "not an object"),
        ('{"train": "a"}', "not an object"),
        ('{"train": [1]}', "something else than strings"),
        ('{"train": ["a", "a"]}', "'a' more than once"),
    ],
)
def test_malformed_split_file(tmp_path, name, text, message):
    write_pair(tmp_path, "a", random_labels(0))
    (tmp_path / "splits.json").write_text(text)
    register_label_maps(name, str(tmp_path), "train")
    with pytest.raises(DataError, match=rf"splits\.json.*{message}"):
        DatasetCatalog.get(name)


def test_all_bad_files_are_named_at_once_or_skipped_with_one_warning(tmp_path, name, caplog):
    for seed, stem in enumerate(["good", "unlabelled", "cut", "small", "colour", "twin"]):
        write_pair(tmp_path, stem, random_labels(seed))
    (tmp_path / "labels" / "unlabelled.png").unlink()
    cut = tmp_path / "labels" / "cut.png"
    cut.write_bytes(cut.read_bytes()[:70])
    write_pair(tmp_path / "other", "small", random_labels(0, 19, 30))
    (tmp_path / "other" / "labels" / "small.png").rename(tmp_path / "labels" / "small.png")
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / "labels" / "colour.png")
    Image.fromarray(np.zeros((20, 30), dtype=np.uint8)).save(tmp_path / "images" / "twin.tif")
    stems = ["good", "unlabelled", "cut", "small", "colour", "twin", "goood"]
    (tmp_path / "splits.json").write_text(json.dumps({"train": stems}))

    register_label_maps(name, str(tmp_path), "train")
    with pytest.raises(DataError) as error:
        DatasetCatalog.get(name)
    text = str(error.value)
    assert text.startswith("6 problems in the data")
    for part in (
        "unlabelled.png: no label image",
        "labels/cut.png: cannot be read",
        "labels/small.png: the label image is 19 high x 30 wide",
        "labels/colour.png: a label image must have one channel",
        "twin.tif: ",
        "'goood'",
        "Did you mean 'good'",
    ):
        assert part in text
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)

    register_label_maps(name, str(tmp_path), "train", on_error="skip")
    dicts = DatasetCatalog.get(name)
    assert [record["image_id"] for record in dicts] == ["good", "twin"]
    (warning,) = [record for record in caplog.records if "problems in the data" in record.getMessage()]
    assert "cut.png" in warning.getMessage()
    assert "small.png" in warning.getMessage()


def test_nothing_found(tmp_path, name):
    (tmp_path / "images").mkdir()
    register_label_maps(name, str(tmp_path))
    with pytest.raises(DataError, match=r"labels: there is no such folder"):
        DatasetCatalog.get(name)
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match=r"images: no image with a label image was found.*\.png"):
        DatasetCatalog.get(name)


def test_config_may_nest_the_registration(tmp_path, name):
    from detectron2.config import LazyCall, instantiate

    write_pair(tmp_path, "a", random_labels(0))
    config = LazyCall(register_label_maps)(name=name, root=str(tmp_path), thing_classes=["nucleus"])
    assert instantiate(config) == name
    assert instantiate(config) == name
    assert len(DatasetCatalog.get(name)) == 1


@pytest.mark.skipif(not NUCLEI.is_dir(), reason=f"the nuclei images are not at {NUCLEI}")
def test_nuclei_counts(name):
    train, val = f"{name}_train", f"{name}_val"
    try:
        for label_set, split in ((train, "train"), (val, "val")):
            register_label_maps(label_set, str(NUCLEI), split, thing_classes=["nucleus"])
        dicts = {split: DatasetCatalog.get(label_set) for split, label_set in (("train", train), ("val", val))}
        assert {split: len(records) for split, records in dicts.items()} == {"train": 397, "val": 50}
        assert not {r["image_id"] for r in dicts["train"]} & {r["image_id"] for r in dicts["val"]}
        assert all(entry["area"] > 0 for record in dicts["val"] for entry in record["annotations"])
    finally:
        for label_set in (train, val):
            DatasetCatalog.remove(label_set)
            MetadataCatalog.remove(label_set)
