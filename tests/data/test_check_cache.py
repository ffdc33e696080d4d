"""What is known of a data set is looked up until a file changes, on one process and on several."""

import json
import multiprocessing
import os
import pickle
import re

import cv2
import numpy as np
import pytest
import torch.distributed as dist
from detectron2.config import LazyCall, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils import comm
from omegaconf import OmegaConf

import maskrcnn_plus.data.check_cache as check_cache
import maskrcnn_plus.data.coco as coco
import maskrcnn_plus.data.findings as findings
import maskrcnn_plus.data.formats.label_maps as label_maps
from maskrcnn_plus.data.check import DataError, checked_dataset
from maskrcnn_plus.data.coco import register_coco
from maskrcnn_plus.data.copy_paste import CopyPasteMapper
from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.data.registration import register_label_maps
from maskrcnn_plus.data.stream import TrainingStream
from maskrcnn_plus.evaluation.ground_truth import ground_truth_rles, load_ground_truth

BOX = {"bbox": [2.0, 2.0, 6.0, 6.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
SQUARE = [2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test, and a memory without what other tests left."""
    monkeypatch.setenv("MASKRCNN_PLUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(check_cache, "_in_memory", {})
    return tmp_path / "cache" / "data"


@pytest.fixture
def reads(monkeypatch):
    """Files that are opened for their header or pixels."""
    opened = []
    for module in (findings, label_maps):
        for name in ("read_image_size", "read_label_map"):
            real = getattr(module, name)
            monkeypatch.setattr(
                module, name, lambda path, *rest, real=real: opened.append(str(path)) or real(path, *rest)
            )
    return opened


@pytest.fixture
def dataset(tmp_path):
    """A registered data set of three images with a polygon each, and its dicts."""
    dicts = []
    for k in range(3):
        path = tmp_path / f"{k}.png"
        cv2.imwrite(str(path), np.zeros((20, 30, 3), np.uint8))
        annotation = {**BOX, "segmentation": [SQUARE]}
        dicts.append({"file_name": str(path), "image_id": k, "height": 20, "width": 30, "annotations": [annotation]})
    DatasetCatalog.register("cached", lambda: pickle.loads(pickle.dumps(dicts)))
    MetadataCatalog.get("cached").thing_classes = ["a"]
    yield dicts
    DatasetCatalog.remove("cached")
    MetadataCatalog.remove("cached")


def restart(monkeypatch):
    """What another process remembers: what lies on the disk."""
    monkeypatch.setattr(check_cache, "_in_memory", {})


def test_the_second_start_opens_no_file(dataset, reads, monkeypatch):
    first = checked_dataset("cached")
    assert len(reads) == 3
    assert checked_dataset("cached") == first
    restart(monkeypatch)
    assert checked_dataset("cached") == first == dataset
    assert len(reads) == 3


@pytest.mark.parametrize("change", ["time", "size", "deleted", "annotation", "classes", "decode"])
def test_what_has_changed_is_looked_at_again(dataset, reads, monkeypatch, change):
    checked_dataset("cached")
    restart(monkeypatch)
    path, arguments = dataset[1]["file_name"], {}
    if change == "time":
        status = os.stat(path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif change == "size":
        cv2.imwrite(path, np.zeros((25, 30, 3), np.uint8))
    elif change == "deleted":
        os.remove(path)
    elif change == "annotation":
        dataset[1]["annotations"][0]["category_id"] = 7
    elif change == "classes":
        MetadataCatalog.remove("cached")
        MetadataCatalog.get("cached").thing_classes = ["a", "b"]
    else:
        arguments = {"decode": True}
    if change in ("size", "deleted", "annotation"):
        with pytest.raises(DataError, match=re.escape("1.png")):
            checked_dataset("cached")
    else:
        checked_dataset("cached", **arguments)
    assert len(reads) == 6


def test_bad_and_changed_annotations_are_the_same_from_the_cache(dataset, reads, monkeypatch, caplog):
    dataset[0]["annotations"] += [{**BOX, "segmentation": [SQUARE], "bbox": None, "bbox_mode": None}, {**BOX}]
    dataset[2]["height"] = 7
    first = checked_dataset("cached", on_error="skip")
    assert [len(record["annotations"]) for record in first] == [2, 1]
    said = [r.getMessage() for r in caplog.records if r.name.endswith("data.check")]
    assert len(said) == 2
    restart(monkeypatch)
    monkeypatch.setattr("maskrcnn_plus.data.check._reported", set())
    again = checked_dataset("cached", on_error="skip")
    assert again == first
    assert type(again[0]["annotations"][1]["bbox_mode"]) is BoxMode
    assert len(reads) == 3
    assert [r.getMessage() for r in caplog.records if r.name.endswith("data.check")] == said * 2
    with pytest.raises(DataError, match=r"^2 problems"):
        checked_dataset("cached")
    assert len(reads) == 3


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\x00", "altered", "other key"])
def test_a_damaged_cache_is_ignored_and_replaced(dataset, reads, monkeypatch, cache, damage):
    dataset[0]["annotations"].append({**BOX})
    expected = checked_dataset("cached", on_error="skip")
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    if isinstance(damage, str):
        content = json.loads(whole)
        if damage == "altered":
            content["findings"]["changes"] = {}
        else:
            content["key"] = "0" * 40
        damage = json.dumps(content).encode()
    file.write_bytes(damage)
    restart(monkeypatch)
    assert checked_dataset("cached", on_error="skip") == expected
    assert len(reads) == 6
    assert file.read_bytes() == whole


@pytest.mark.parametrize("fault", ["a file in its place", "disk full", "switched off"])
def test_without_a_cache_the_check_works(dataset, reads, monkeypatch, tmp_path, fault):
    if fault == "a file in its place":
        (tmp_path / "cache").write_text("")
    elif fault == "disk full":

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(check_cache, "write_atomically", full)
    else:
        monkeypatch.setenv("MASKRCNN_PLUS_CACHE", "")
    for _ in range(2):
        assert checked_dataset("cached") == dataset
        restart(monkeypatch)
    assert len(reads) == 6


def test_the_cache_does_not_grow_without_end(monkeypatch, cache):
    monkeypatch.setattr(check_cache, "_KEPT", 3)
    for k in range(5):
        check_cache.get_cached(f"{k}" * 40, lambda k=k: {"k": k})
        os.utime(cache / f"{str(k) * 40}.json", ns=(k, k))
    assert sorted(file.name[0] for file in cache.iterdir()) == ["2", "3", "4"]


def test_where_the_cache_is(monkeypatch):
    monkeypatch.delenv("MASKRCNN_PLUS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(check_cache.cache_folder()) == "/somewhere/maskrcnn_plus"


def test_equal_values_have_equal_fingerprints_however_they_share_their_parts():
    text = "abc" * 10
    shared, apart = [{"a": text, "b": text}], [{"a": "abc" * 10, "b": "".join(["abc"] * 10)}]
    assert check_cache.fingerprint(shared, ()) == check_cache.fingerprint(apart, ())
    assert check_cache.fingerprint([{"a": 1}], ()) != check_cache.fingerprint([{"a": 1.5}], ())
    assert check_cache.fingerprint([lambda: 0], ()) is None
    assert check_cache.fingerprint([], ["https://host/a.png"]) is None


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "folder"
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    labels = np.zeros((20, 30), np.uint16)
    labels[2:8, 2:9], labels[10:15, 12:20] = 1, 70
    for k in range(2):
        cv2.imwrite(str(root / f"images/{k}.png"), np.zeros((20, 30), np.uint8))
        cv2.imwrite(str(root / f"labels/{k}.png"), labels)
    return root


def test_label_images_are_not_read_again(folder, reads, monkeypatch):
    def load(name):
        restart(monkeypatch)
        return checked_dataset(register_label_maps(name, str(folder)))

    first = load("cached_labels_a")
    opened = len(reads)
    assert opened == 8  # an image's size and its labels, and the sizes of both in the check
    assert load("cached_labels_b") == first
    assert len(reads) == opened
    cv2.imwrite(str(folder / "labels/1.png"), np.zeros((20, 30), np.uint8))
    assert len(load("cached_labels_c")) == 1
    assert len(reads) > opened


def test_a_config_that_names_the_data_twice_checks_it_once(dataset, reads):
    """As copy-paste does, whose mapper and stream take the same data set."""
    cfg = OmegaConf.create(
        {
            "stream": LazyCall(TrainingStream)(dataset=LazyCall(checked_dataset)(names="cached"), total_batch_size=1),
            "mapper": LazyCall(CopyPasteMapper)(
                mapper=LazyCall(InstanceMapper)(is_train=True, augmentations=[]), dataset="${stream.dataset}"
            ),
        },
        flags={"allow_objects": True},
    )
    stream, mapper = instantiate(cfg.stream), instantiate(cfg.mapper)
    assert len(reads) == 3
    assert [mapper.dataset[i] for i in range(3)] == [stream.dataset[i] for i in range(3)] == dataset


def test_evaluators_judge_what_the_loader_gives(dataset):
    dataset[0]["annotations"] += [{**BOX, "segmentation": [[1.0, 2, 3, 4]]}]
    dataset[1]["annotations"][0]["bbox"] = [50.0, 50, 2, 2]
    dataset[2]["height"] = 7
    with pytest.raises(DataError, match=r"^3 problems"):
        load_ground_truth("cached", on_error="raise")
    truth = load_ground_truth("cached", on_error="skip")
    assert {image_id: len(entry["annotations"]) for image_id, entry in truth.items()} == {0: 1}
    assert list(truth.values()) == checked_dataset("cached", filter_empty=False, on_error="skip")


@pytest.fixture
def coco_file(tmp_path):
    """Register a COCO file of an image of 40 x 60 pixels with given annotations, under a name of its own."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 60, 3), np.uint8))
    names = []

    def write(annotations):
        name = f"coco_file_{len(names)}_{tmp_path.name}"
        own = [{"id": k, "image_id": 1, "category_id": 1, "iscrowd": 0, **each} for k, each in enumerate(annotations)]
        content = {
            "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
            "categories": [{"id": 1, "name": "cell"}],
            "annotations": own,
        }
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        names.append(register_coco(name, str(path), str(tmp_path)))
        return name, path

    yield write
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_a_coco_file_is_read_once_a_process_until_it_changes(coco_file, monkeypatch):
    calls = []
    real = coco.read_coco
    monkeypatch.setattr(coco, "read_coco", lambda *arguments: calls.append(1) or real(*arguments))
    name, path = coco_file([{"segmentation": [SQUARE], "bbox": [2, 2, 6, 6]}])
    first = checked_dataset(name)
    first[0]["annotations"].clear()
    assert len(checked_dataset(name)[0]["annotations"]) == 1
    assert len(calls) == 1
    path.write_text(path.read_text().replace("[2, 2, 6, 6]", "[2, 2, 5, 6]"))
    assert checked_dataset(name)[0]["annotations"][0]["bbox"][2] == 5
    assert len(calls) == 2


def test_coco_files_pass_unusual_annotations_on_to_the_check(coco_file):
    """What the reader leaves as it stands is understood, or named, by the check."""
    points = [[10, 5], [30, 5], [30, 25], [10, 25]]
    flat = [value for point in points for value in point]
    runs = [10 * 40 + 5] + [20, 20] * 19 + [20, 30 * 40 + 15]
    box = [10.0, 5.0, 20.0, 20.0]
    good = [
        {"segmentation": [points], "bbox": box},
        {"segmentation": flat, "bbox": box},
        {"segmentation": [list(map(str, flat))], "bbox": box},
        {"segmentation": {"size": [40, 60], "counts": runs}, "bbox": []},
        {"segmentation": [flat]},
        {"segmentation": [flat], "bbox": [10, 5, 30, 25]},
    ]
    bad = [
        {"segmentation": [flat[:4]], "bbox": box},
        {"segmentation": [[2e8, *flat[1:]]], "bbox": box},
        {"segmentation": {"size": [40, 60], "counts": "0P"}, "bbox": box},
        {"segmentation": [[value / 100 for value in flat]], "bbox": box},
    ]
    name, _ = coco_file([*good, *bad])
    with pytest.raises(DataError, match=r"^4 problems") as error:
        checked_dataset(name)
    assert all(f"a.png, annotation {k} (id {k}): " in str(error.value) for k in range(6, 10))
    (record,) = checked_dataset(name, on_error="skip")
    assert [annotation["bbox"] for annotation in record["annotations"]] == [box] * 6
    masks = ground_truth_rles(record)
    assert masks == [masks[0]] * 6


def _rank(rank, address, root, bad, results):
    """One of two processes, each with its own count of opened files."""
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    comm._LOCAL_PROCESS_GROUP = dist.group.WORLD
    opened = []
    real = findings.read_image_size
    findings.read_image_size = lambda path, *rest: opened.append(path) or real(path, *rest)
    if bad and rank == 0:
        os.remove(os.path.join(root, "labels/0.png"))
    try:
        outcome = len(checked_dataset(register_label_maps("ranks", root)))
    except DataError as error:
        outcome = str(error)
    results.put((rank, outcome, len(opened)))
    dist.destroy_process_group()


@pytest.mark.parametrize("bad", [False, True])
def test_the_main_process_alone_looks_and_all_learn_of_it(folder, tmp_path, bad):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    address = f"file://{tmp_path}/ranks"
    processes = [context.Process(target=_rank, args=(k, address, str(folder), bad, results)) for k in range(2)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    if bad:
        assert found[0][1] == found[1][1]
        assert "no label image" in found[1][1]
    else:
        assert [entry[1:] for entry in found] == [(2, 4), (2, 0)]
