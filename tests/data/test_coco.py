"""COCO files registered from a config equal Detectron2's own registration."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.coco import register_coco
from maskrcnn_plus.rle import canonical_rles

COCO_TINY = Path(__file__).resolve().parents[3] / "shared/data/coco_tiny"


@pytest.fixture
def names():
    used = []
    yield lambda name: used.append(name) or name
    for name in used:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def _write(folder, **changes):
    polygon = [[1.0, 1, 5, 1, 5, 5]]
    annotations = [
        {
            "id": 7,
            "image_id": 3,
            "category_id": 9,
            "iscrowd": 0,
            "area": 8.0,
            "bbox": [1, 1, 4, 4],
            "segmentation": polygon,
        }
    ]
    content = {
        "images": [{"id": 3, "file_name": "a.png", "height": 10, "width": 12}],
        "annotations": annotations,
        "categories": [{"id": 9, "name": "cell"}],
        "info": {},
        **changes,
    }
    (folder / "a.json").write_text(json.dumps(content))
    return str(folder / "a.json"), str(folder)


def test_equals_detectron2s_registration(tmp_path, names):
    json_file, root = _write(tmp_path)
    assert register_coco(names("coco_a"), json_file, root) == "coco_a"
    assert register_coco("coco_a", json_file, root) == "coco_a"
    expected = load_coco_json(json_file, root, names("coco_b"), extra_annotation_keys=["id"])
    assert DatasetCatalog.get("coco_a") == expected
    assert MetadataCatalog.get("coco_a").thing_classes == ["cell"]
    ids = MetadataCatalog.get("coco_a").thing_dataset_id_to_contiguous_id
    assert ids == MetadataCatalog.get("coco_b").thing_dataset_id_to_contiguous_id == {9: 0}
    with pytest.raises(DataError, match="coco_a"):
        register_coco("coco_a", json_file, str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("fault", ["missing file", "missing folder", "no json", "no categories"])
def test_bad_files_are_named(tmp_path, names, fault):
    json_file, root = _write(tmp_path)
    if fault == "missing file":
        json_file = str(tmp_path / "b.json")
    elif fault == "missing folder":
        root = str(tmp_path / "nowhere")
    elif fault == "no json":
        Path(json_file).write_text("{")
    else:
        Path(json_file).write_text(json.dumps({"images": []}))
    register_coco(names("coco_bad"), json_file, root)
    with pytest.raises(DataError, match=r"coco_bad.*(b\.json|nowhere|a\.json)"):
        DatasetCatalog.get("coco_bad")


@pytest.mark.skipif(not COCO_TINY.is_dir(), reason="the photographs of coco_tiny are not there")
def test_photographs_with_crowds(names):
    register_coco(names("coco_tiny"), COCO_TINY / "instances.json", COCO_TINY / "images")
    dicts = DatasetCatalog.get("coco_tiny")
    assert len(dicts) == 33
    annotations = [annotation for entry in dicts for annotation in entry["annotations"]]
    assert len(annotations) == 246
    assert any(annotation["iscrowd"] for annotation in annotations)
    assert len(MetadataCatalog.get("coco_tiny").thing_classes) == 80
    expected = load_coco_json(
        str(COCO_TINY / "instances.json"), str(COCO_TINY / "images"), names("coco_of_detectron2"), ["id"]
    )
    for entry in (entry for each in (dicts, expected) for record in each for entry in record["annotations"]):
        if isinstance(entry["segmentation"], dict):  # Detectron2 compresses them
            entry["segmentation"] = canonical_rles([entry["segmentation"]])[0]
    assert dicts == expected
    ids = MetadataCatalog.get("coco_tiny").thing_dataset_id_to_contiguous_id
    assert ids == MetadataCatalog.get("coco_of_detectron2").thing_dataset_id_to_contiguous_id
