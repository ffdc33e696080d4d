"""CopyPasteMapper around real mappers: data order, resumed runs, the shipped config, real images."""

import copy
import itertools
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode

from maskrcnn_plus.config import get_config
from maskrcnn_plus.data.augmentation import RandomRotate90, RandomScaleCrop
from maskrcnn_plus.data.copy_paste import CopyPasteMapper
from maskrcnn_plus.data.intensity import RandomIntensity
from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.data.registration import label_map_annotations
from maskrcnn_plus.data.stream import TrainingStream
from maskrcnn_plus.masks.label_masks import LabelMapMasks

NUCLEI = Path(__file__).resolve().parents[3] / "shared" / "data" / "nuclei_fluo"

AUGMENTATIONS = [
    RandomScaleCrop(40, (0.7, 1.6)),
    RandomRotate90(),
    T.RandomFlip(0.5),
    RandomIntensity((0.8, 1.2), (0.8, 1.2), (0.7, 1.4), 0.3, (0, 6)),
]


def seed_generator(seed):
    np.random.seed(seed)  # noqa: NPY002 - the generator that the stream seeds


def bits(masks):
    """Masks of any kind as a list of bool arrays."""
    return list((masks.to_bitmasks() if isinstance(masks, LabelMapMasks) else masks).tensor.numpy())


def write_folder(folder, sizes=((50, 60), (60, 45), (64, 64))):
    """A folder of images and label images with its splits.json, and its dataset dicts."""
    entries = []
    for sub in ("images", "labels"):
        (folder / sub).mkdir()
    for i, size in enumerate(sizes):
        rng = np.random.default_rng(i)
        numbers = rng.permutation(30).reshape(5, 6).astype(np.uint8)  # rectangles that touch; 0 is background
        labels = cv2.resize(numbers * (numbers < 16), size[::-1], interpolation=cv2.INTER_NEAREST)
        paths = [str(folder / sub / f"{i}.png") for sub in ("images", "labels")]
        cv2.imwrite(paths[0], rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        cv2.imwrite(paths[1], labels.astype(np.uint16))
        keys = ("file_name", "label_file_name", "image_id", "height", "width", "annotations")
        entries.append(dict(zip(keys, (*paths, i, *size, label_map_annotations(labels)), strict=True)))
    names = [str(i) for i in range(len(sizes))]
    (folder / "splits.json").write_text(json.dumps({"train": names, "val": names}))
    return entries


def same(example, other):
    """Whether two examples have the same image, boxes, classes and masks."""
    first, second = example["instances"], other["instances"]
    return (
        torch.equal(example["image"], other["image"])
        and torch.equal(first.gt_boxes.tensor, second.gt_boxes.tensor)
        and torch.equal(first.gt_classes, second.gt_classes)
        and np.array_equal(bits(first.gt_masks), bits(second.gt_masks))
        and example["image_id"] == other["image_id"]
    )


def test_probability_and_examples_without_paste(tmp_path):
    entries = write_folder(tmp_path)
    before = copy.deepcopy(entries)
    inner = InstanceMapper(True, AUGMENTATIONS)
    mappers = {p: CopyPasteMapper(inner, entries, probability=p) for p in (0, 0.3, 1)}
    changed = Counter()
    for seed in range(50):
        seed_generator(seed)
        plain = inner(entries[seed % 3])
        for probability, mapper in mappers.items():
            seed_generator(seed)
            example = mapper(entries[seed % 3])
            changed[probability] += not same(example, plain)
            if probability == 1 and seed < 6:
                seed_generator(seed)
                assert same(mapper(entries[seed % 3]), example)
    assert changed[0] == 0
    assert changed[1] > 45
    assert abs(changed[0.3] - 15) < 4 * (50 * 0.3 * 0.7) ** 0.5
    assert entries == before


def batches(entries, num_batches, num_workers=0, start_iter=0):
    loader = build_detection_train_loader(
        dataset=TrainingStream(entries, total_batch_size=2, seed=7, start_iter=start_iter),
        mapper=CopyPasteMapper(InstanceMapper(True, AUGMENTATIONS), entries, probability=0.6, max_overlap=0.4),
        total_batch_size=2,
        aspect_ratio_grouping=False,
        num_workers=num_workers,
    )
    return [example for batch in itertools.islice(iter(loader), num_batches) for example in batch]


@pytest.mark.parametrize(("num_workers", "start_iter"), [(0, 3), (2, 0), (2, 3)])
def test_resumed_training_sees_the_same_examples(tmp_path, num_workers, start_iter):
    entries = write_folder(tmp_path)
    whole = batches(entries, 6)[2 * start_iter :]
    again = batches(entries, 6 - start_iter, num_workers, start_iter)
    assert len(again) == len(whole) == 12 - 2 * start_iter
    assert all(map(same, again, whole))
    assert all(type(example["instances"].gt_masks) is LabelMapMasks for example in again)


def test_mask_targets_are_those_of_bit_masks(tmp_path):
    entries = write_folder(tmp_path)
    seed_generator(2)
    instances = CopyPasteMapper(InstanceMapper(True, AUGMENTATIONS), entries, probability=1)(entries[0])["instances"]
    assert len(instances) > 5
    targets = instances.gt_masks.crop_and_resize(instances.gt_boxes.tensor, 14)
    expected = instances.gt_masks.to_bitmasks().crop_and_resize(instances.gt_boxes.tensor, 14)
    assert torch.equal(targets, expected)
    assert targets.flatten(1).any(1).all()


def test_around_the_mapper_of_detectron2(tmp_path):
    polygon = [[5.0, 5, 25, 5, 25, 25, 5, 25], [30.0, 8, 44, 8, 37, 22]]
    annotations = [
        {"bbox": [0, 0, 50, 50], "bbox_mode": BoxMode.XYXY_ABS, "category_id": i, "segmentation": [points]}
        for i, points in enumerate(polygon)
    ]
    entries = []
    for entry in write_folder(tmp_path)[:2]:
        entry.pop("label_file_name")
        entries.append({**entry, "annotations": annotations if not entries else []})  # the second has no objects
    augmentations = [T.Resize((32, 36)), T.RandomFlip(0.5)]
    inner = DatasetMapper(is_train=True, augmentations=augmentations, image_format="RGB", use_instance_mask=True)
    mapper = CopyPasteMapper(inner, entries, probability=1)
    numbers = set()
    for seed in range(16):
        seed_generator(seed)
        example = mapper(entries[seed % 2])
        instances = example["instances"]
        numbers.add((seed % 2, len(instances)))
        assert example["image"].shape == (3, *instances.image_size) == (3, 32, 36)
        if len(instances) > 2 * (seed % 2 == 0):  # something was pasted
            assert type(instances.gt_masks) is BitMasks
            assert torch.equal(instances.gt_boxes.tensor, instances.gt_masks.get_bounding_boxes().tensor)
    assert {(0, 2), (0, 3), (1, 0), (1, 1), (1, 2)} <= numbers


@pytest.fixture
def nuclei_config(tmp_path):
    """The shipped config over a small folder; its data sets are removed from the catalogs afterwards."""
    write_folder(tmp_path)
    cfg = get_config("nuclei/variants/copy_paste")
    cfg.dataset.root = str(tmp_path)
    for split in (cfg.dataloader.train.dataset.dataset, cfg.dataloader.test.dataset):
        split.names.name += "_of_copy_paste"
    cfg.dataloader.train.num_workers = 0
    yield cfg
    for name in ("nuclei_train_of_copy_paste", "nuclei_val_of_copy_paste"):
        MetadataCatalog.pop(name, None)
        DatasetCatalog.pop(name, None)


def test_config_pastes_from_the_training_images(nuclei_config, tmp_path):
    LazyConfig.save(nuclei_config, str(tmp_path / "config.yaml"))
    results = []
    for cfg in (nuclei_config, LazyConfig.load(str(tmp_path / "config.yaml"))):
        cfg.dataloader.train.mapper.probability = 1
        mapper = instantiate(cfg.dataloader.train.mapper)
        assert isinstance(mapper.mapper, InstanceMapper)
        assert mapper.mapper.percentiles == [1.0, 99.8]
        dataset = instantiate(cfg.dataloader.train.dataset).dataset
        assert [mapper.dataset[i] for i in range(len(mapper.dataset))] == [dataset[i] for i in range(len(dataset))]
        assert len(dataset) == 3
        results.append(next(iter(instantiate(cfg.dataloader.train))))
    assert len(results[0]) == 4
    assert all(map(same, *results))


def test_config_differs_from_its_base_in_the_mapper_alone():
    cfg, base = get_config("nuclei/variants/copy_paste"), get_config("nuclei/mask_rcnn_lite0_fpn")
    assert cfg.train.output_dir != base.train.output_dir
    cfg.train.output_dir = base.train.output_dir
    cfg.dataloader.train.mapper = cfg.dataloader.train.mapper.mapper
    assert cfg == base


def test_inner_mappers_without_masks_are_named(tmp_path):
    entries = write_folder(tmp_path)
    for options in ({"is_train": False}, {"is_train": True, "use_masks": False}):
        mapper = CopyPasteMapper(InstanceMapper(augmentations=[], **options), entries)
        with pytest.raises(ValueError, match=r"0\.png: copy-paste needs .*gt_masks.*for training with instance masks"):
            mapper(entries[0])


def test_a_missing_second_image_is_named(tmp_path):
    entries = write_folder(tmp_path)
    mapper = CopyPasteMapper(InstanceMapper(True, []), [{**entries[0], "file_name": "gone.png"}], probability=1)
    with pytest.raises(ValueError, match=r"gone\.png"):
        mapper(entries[0])


def test_objects_come_from_entries_of_the_same_kind_alone(tmp_path):
    entries = write_folder(tmp_path)
    for entry, kind in zip(entries, "aba", strict=True):
        entry["kind"] = kind
    seen = []

    def inner(entry):
        seen.append(entry["image_id"])
        return InstanceMapper(True, [])(entry)

    mapper = CopyPasteMapper(inner, entries, probability=1, within="kind")
    for seed in range(20):
        seed_generator(seed)
        mapper(entries[0])
    assert set(seen[::2]) == {0}
    assert set(seen[1::2]) == {0, 2}
    with pytest.raises(KeyError, match="scanner"):
        CopyPasteMapper(inner, entries, within="scanner")


def test_augmentations_of_pixels_come_after_the_pasting(tmp_path):
    entries = write_folder(tmp_path, sizes=((64, 64), (64, 64)))
    inner = InstanceMapper(True, [])
    invert = CopyPasteMapper(inner, entries, probability=1, augmentations=[RandomIntensity(invert=1.0)])
    for seed in range(4):
        seed_generator(seed)
        plain = CopyPasteMapper(inner, entries, probability=1)(entries[0])
        seed_generator(seed)
        changed = invert(entries[0])
        assert torch.equal(changed["image"], 255 - plain["image"])
        assert len(changed["instances"]) == len(plain["instances"])


@pytest.mark.skipif(not NUCLEI.is_dir(), reason=f"the micrographs are not at {NUCLEI}")
def test_real_nuclei():
    names = json.loads((NUCLEI / "splits.json").read_text())["train"][::60]
    entries = []
    for name in names:
        labels = cv2.imread(str(NUCLEI / "labels" / f"{name}.png"), cv2.IMREAD_UNCHANGED).astype(np.int32)
        paths = {"file_name": str(NUCLEI / f"images/{name}.png"), "label_file_name": str(NUCLEI / f"labels/{name}.png")}
        entries.append({**paths, "image_id": name, "annotations": label_map_annotations(labels)})
    inner = InstanceMapper(True, [RandomScaleCrop(128, (1, 2)), *AUGMENTATIONS[1:]], percentiles=(1, 99.8))
    mapper = CopyPasteMapper(inner, entries, probability=1, max_overlap=0)
    more = 0
    for seed, entry in enumerate(entries):
        seed_generator(seed)
        plain = inner(entry)["instances"]
        seed_generator(seed)
        instances = mapper(entry)["instances"]
        masks, below = bits(instances.gt_masks), bits(plain.gt_masks)
        more += len(masks) - len(below)
        assert np.array_equal(masks[: len(below)], below)
        assert np.sum(masks, axis=0).max() <= 1
        assert min(mask.sum() for mask in masks) >= 4
        assert torch.equal(instances.gt_boxes.tensor, instances.gt_masks.to_bitmasks().get_bounding_boxes().tensor)
    assert more > 10
