"""InstanceMapper against naive loops and against Detectron2's DatasetMapper."""

import copy
import itertools
import random
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, PolygonMasks
from fvcore.transforms.transform import Transform

from maskrcnn_plus.data.augmentation import RandomRotate90, RandomScaleCrop, ScaleImage
from maskrcnn_plus.data.intensity import RandomIntensity
from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.data.stream import TrainingStream
from maskrcnn_plus.masks.label_map import masks_to_rles
from maskrcnn_plus.masks.label_masks import LabelMapMasks

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
AUGMENTATIONS = [
    RandomScaleCrop((48, 40), (0.6, 1.8)),
    RandomRotate90(),
    T.RandomFlip(0.5),
    RandomIntensity((0.8, 1.2), (0.8, 1.2), (0.7, 1.4), 0.3, (0, 6)),
]


def seed_generators(seed):
    np.random.seed(seed)  # noqa: NPY002 - Detectron2's augmentations draw from the global generator
    random.seed(seed)


def with_rle(entry, index):
    entry = copy.deepcopy(entry)
    annotation = entry["annotations"][index]
    annotation["segmentation"] = mask_util.merge(mask_util.frPyObjects(annotation["segmentation"], 60, 80))
    return entry


def crowd_of(entry):
    crowd = copy.deepcopy(entry["annotations"][0])
    crowd["iscrowd"] = 1
    return {**entry, "annotations": [*entry["annotations"], crowd]}


@pytest.mark.parametrize("seed", range(12))
def test_label_images_give_what_a_loop_over_instances_gives(label_entry, seed):
    """The image shows the labels themselves, so the naive masks come from the transformed image's own transforms."""
    seed_generators(seed)
    mapper = InstanceMapper(True, AUGMENTATIONS[:3], channels=1)
    example = mapper(label_entry)
    instances = example["instances"]

    seed_generators(seed)
    labels = cv2.imread(label_entry["label_file_name"], cv2.IMREAD_UNCHANGED)
    aug_input = T.AugInput(labels.astype(np.uint8)[:, :, None])
    transforms = T.AugmentationList(AUGMENTATIONS[:3])(aug_input)
    masks, boxes, classes = [], [], []
    for annotation in label_entry["annotations"]:
        mask = transforms.apply_segmentation((labels == annotation["label_id"]).astype(np.uint8))
        if mask.sum() < 4:
            continue
        y, x = np.nonzero(mask)
        masks.append(mask)
        boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
        classes.append(annotation["category_id"])
    assert len(masks) > 3
    assert isinstance(instances.gt_masks, LabelMapMasks)
    assert instances.gt_masks.to_bitmasks().tensor.tolist() == np.array(masks, dtype=bool).tolist()
    assert instances.gt_boxes.tensor.tolist() == np.array(boxes).tolist()
    assert instances.gt_classes.tolist() == classes
    assert instances.image_size == example["image"].shape[1:]
    assert np.array_equal(example["image"][0].numpy(), aug_input.image[:, :, 0])


def test_example_holds_what_detectron2_expects(label_entry):
    seed_generators(0)
    example = InstanceMapper(True, AUGMENTATIONS)(label_entry)
    assert example["image"].dtype == torch.uint8
    assert example["image"].is_contiguous()
    assert example["image"].shape[0] == 3
    assert (example["height"], example["width"]) == (60, 72)
    assert example["image_id"] == "squares"
    assert "annotations" not in example
    instances = example["instances"]
    assert instances.gt_classes.dtype == torch.int64
    assert instances.gt_boxes.tensor.dtype == torch.float32


@pytest.mark.parametrize("kind", ["label", "polygon", "rle"])
def test_input_stays_as_it_is(label_entry, coco_entry, kind):
    entry = {"label": label_entry, "polygon": coco_entry, "rle": with_rle(coco_entry, 0)}[kind]
    if kind == "polygon":
        # Detectron2's flips change the coordinates of arrays in place.
        for annotation in entry["annotations"]:
            annotation["segmentation"] = [np.array(polygon) for polygon in annotation["segmentation"]]
    before = copy.deepcopy(entry)
    seed_generators(1)
    InstanceMapper(True, [T.RandomFlip(1.0), *AUGMENTATIONS])(entry)
    assert str(entry) == str(before)


def assert_equals_detectron2(entry, augmentations, mask_format):
    seed_generators(3)
    ours = InstanceMapper(True, augmentations, min_area=0)(entry)
    seed_generators(3)
    theirs = DatasetMapper(
        is_train=True,
        augmentations=augmentations,
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format=mask_format,
        recompute_boxes=True,
    )(entry)
    assert torch.equal(ours["image"], theirs["image"])
    ours, theirs = ours["instances"], theirs["instances"]
    assert torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
    assert torch.equal(ours.gt_classes, theirs.gt_classes)
    assert type(ours.gt_masks) is type(theirs.gt_masks)
    crops = (each.gt_masks.crop_and_resize(each.gt_boxes.tensor, 28) for each in (ours, theirs))
    assert torch.equal(*crops)
    return ours


@pytest.mark.parametrize("augmentations", [[], [T.RandomFlip(1.0)], [T.ResizeShortestEdge(90)]], ids=str)
def test_coco_annotations_give_what_detectron2_gives(coco_entry, augmentations):
    polygons = assert_equals_detectron2(crowd_of(coco_entry), augmentations, "polygon")
    assert isinstance(polygons.gt_masks, PolygonMasks)
    assert len(polygons) == 3
    masks = assert_equals_detectron2(with_rle(coco_entry, 1), augmentations, "bitmask")
    assert isinstance(masks.gt_masks, BitMasks)


def test_uncompressed_rle_equals_compressed(coco_entry):
    compressed, uncompressed = with_rle(coco_entry, 1), with_rle(coco_entry, 1)
    mask = mask_util.decode(compressed["annotations"][1]["segmentation"]).ravel(order="F")
    runs = [len(list(group)) for _, group in itertools.groupby(mask)]
    uncompressed["annotations"][1]["segmentation"] = {"size": [60, 80], "counts": runs if mask[0] == 0 else [0, *runs]}
    masks = [InstanceMapper(True, [])(entry)["instances"].gt_masks.tensor for entry in (compressed, uncompressed)]
    assert torch.equal(*masks)


@pytest.mark.parametrize("seed", range(8))
def test_polygons_are_cut_at_the_crop(coco_entry, seed):
    """Area and box of the cut polygon agree with the bitmap of the same window up to its pixels."""
    augmentations = [RandomScaleCrop((24, 24)), RandomRotate90(), T.RandomFlip(0.5)]
    seed_generators(seed)
    polygons = InstanceMapper(True, augmentations, min_area=0)(coco_entry)["instances"]
    bitmaps = copy.deepcopy(coco_entry)
    for i in range(3):
        bitmaps["annotations"][i] = with_rle(coco_entry, i)["annotations"][i]
    seed_generators(seed)
    bitmaps = InstanceMapper(True, augmentations, min_area=0)(bitmaps)["instances"]
    boxes = polygons.gt_boxes.tensor
    assert (boxes >= 0).all()
    assert (boxes <= 24).all()
    for i, category in enumerate(polygons.gt_classes.tolist()):
        same = (bitmaps.gt_classes == category).nonzero()[:, 0]
        area = float(polygons.gt_masks.area()[i])
        pixels = float(bitmaps.gt_masks.tensor[same].sum())
        assert abs(area - pixels) <= 24
        if area > 60:
            assert (boxes[i] - bitmaps.gt_boxes.tensor[same[0]]).abs().max() <= 1.5


@pytest.mark.parametrize("kind", ["label", "polygon", "rle"])
def test_instances_below_the_minimum_area_are_dropped(label_entry, coco_entry, kind):
    entry = {"label": label_entry, "polygon": coco_entry, "rle": with_rle(coco_entry, 0)}[kind]
    whole = InstanceMapper(True, [], min_area=1)(entry)["instances"]
    masks = whole.gt_masks
    areas = masks.tensor.flatten(1).sum(1) if isinstance(masks, BitMasks) else masks.area()
    for limit in (float(areas.min()), float(areas.min()) + 0.5, float(areas.max()) + 1):
        kept = InstanceMapper(True, [], min_area=limit)(entry)["instances"]
        assert kept.gt_classes.tolist() == whole.gt_classes[areas >= limit].tolist()


@pytest.mark.parametrize("kind", ["label", "coco"])
@pytest.mark.parametrize("cause", ["no annotations", "only a crowd", "all too small"])
def test_image_without_instances_gives_empty_fields(label_entry, coco_entry, kind, cause):
    entry = label_entry if kind == "label" else coco_entry
    if cause == "no annotations":
        entry["annotations"] = []
    elif cause == "only a crowd":
        entry["annotations"] = crowd_of(entry)["annotations"][-1:]
    min_area = 1e6 if cause == "all too small" else 4
    instances = InstanceMapper(True, [], min_area=min_area)(entry)["instances"]
    assert len(instances) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.dtype == torch.int64
    assert len(instances.gt_masks) == 0
    assert instances.gt_masks.crop_and_resize(torch.zeros(0, 4), 28).shape == (0, 28, 28)


def test_without_masks_boxes_still_fit_what_is_visible(label_entry, coco_entry):
    for entry in (label_entry, coco_entry):
        seed_generators(5)
        with_masks = InstanceMapper(True, AUGMENTATIONS)(entry)["instances"]
        seed_generators(5)
        without = InstanceMapper(True, AUGMENTATIONS, use_masks=False)(entry)["instances"]
        assert not without.has("gt_masks")
        assert torch.equal(without.gt_boxes.tensor, with_masks.gt_boxes.tensor)


def test_boxes_alone_are_clipped_to_the_crop(coco_entry):
    for annotation in coco_entry["annotations"]:
        del annotation["segmentation"]
    mapper = InstanceMapper(True, [T.CropTransform(20, 20, 30, 30)], use_masks=False)
    instances = mapper(coco_entry)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[0, 0, 10, 10], [20, 0, 30, 20], [0, 25, 10, 30]]
    coco_entry["annotations"] = []
    assert len(mapper(coco_entry)["instances"]) == 0


def test_foreign_transforms_keep_the_labels(label_entry):
    seed_generators(0)
    example = InstanceMapper(True, [T.ResizeShortestEdge(120), T.RandomRotation([15, 15])], channels=1)(label_entry)
    instances = example["instances"]
    assert len(instances) == 30
    for i, annotation in enumerate(label_entry["annotations"]):
        inner = instances.gt_masks[i].to_bitmasks().tensor[0].numpy().astype(np.uint8)
        inner = cv2.erode(inner, np.ones((5, 5), np.uint8)) > 0
        assert inner.any()
        assert (example["image"][0].numpy()[inner] == annotation["label_id"]).all()


class Blur(Transform):
    """A transform whose author forgot that labels must not be mixed."""

    def apply_image(self, img):
        return cv2.blur(img, (3, 3)).reshape(img.shape)

    def apply_coords(self, coords):
        return coords


def test_transform_that_mixes_labels_is_refused(label_entry):
    with pytest.raises(ValueError, match=r"Blur.*labels\.png.*must not interpolate"):
        InstanceMapper(True, [Blur()])(label_entry)


def test_inference_needs_no_more_than_a_file_name(label_entry):
    example = InstanceMapper(False, [ScaleImage(1.5)])({"file_name": label_entry["file_name"]})
    assert example["image"].shape == (3, 90, 108)
    assert (example["height"], example["width"]) == (60, 72)
    assert "instances" not in example
    assert "instances" not in InstanceMapper(False, [])(label_entry)


def test_percentiles_give_float_images_also_through_augmentations(label_entry):
    seed_generators(0)
    example = InstanceMapper(True, AUGMENTATIONS, channels=1, percentiles=(1, 99))(label_entry)
    assert example["image"].dtype == torch.float32
    assert example["image"].max() <= 255


def test_a_resumed_stream_gives_the_same_examples_in_any_number_of_workers(label_entry):
    def examples(start_iter, count, num_workers):
        loader = build_detection_train_loader(
            dataset=TrainingStream([label_entry], total_batch_size=2, seed=9, start_iter=start_iter),
            mapper=InstanceMapper(True, AUGMENTATIONS),
            total_batch_size=2,
            aspect_ratio_grouping=False,
            num_workers=num_workers,
        )
        batches = itertools.islice(iter(loader), count)
        return [(each["image"], each["instances"].gt_masks.to_bitmasks().tensor) for batch in batches for each in batch]

    whole = examples(0, 4, num_workers=0)
    resumed = examples(2, 2, num_workers=2)
    for (image, masks), (expected_image, expected_masks) in zip(resumed, whole[4:], strict=True):
        assert torch.equal(image, expected_image)
        assert torch.equal(masks, expected_masks)
    assert not torch.equal(whole[0][0], whole[1][0])


def test_real_nuclei():
    folder = DATA / "nuclei_fluo"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    label_path = sorted((folder / "labels").iterdir())[0]
    labels = cv2.imread(str(label_path), cv2.IMREAD_UNCHANGED)
    ids = np.unique(labels)[1:].tolist()
    entry = {
        "file_name": str(folder / "images" / label_path.name),
        "label_file_name": str(label_path),
        "annotations": [{"category_id": 0, "label_id": label_id} for label_id in ids],
    }
    instances = InstanceMapper(True, [], min_area=0)(entry)["instances"]
    assert len(instances) == len(ids)
    assert instances.gt_masks.area().tolist() == np.bincount(labels.ravel())[ids].tolist()


@pytest.mark.parametrize("seed", range(6))
def test_rles_that_do_not_overlap_give_the_same_masks_as_one_label_image(coco_entry, seed):
    augmentations = [RandomScaleCrop((40, 40), scale=(0.5, 2.0)), RandomRotate90(), T.RandomFlip(0.5)]
    entry = copy.deepcopy(coco_entry)
    for i in range(3):
        entry["annotations"][i] = with_rle(coco_entry, i)["annotations"][i]
    del entry["annotations"][3:]
    covered = np.zeros((60, 80), dtype=bool)
    for annotation in entry["annotations"]:  # the earlier ones keep the pixels that several have
        mask = mask_util.decode(annotation["segmentation"]).astype(bool) & ~covered
        covered |= mask
        annotation["segmentation"] = masks_to_rles(mask[None])[0]
    results = []
    for label_maps in (False, True):
        seed_generators(seed)
        results.append(InstanceMapper(True, augmentations, label_maps=label_maps)(entry))
    apart, joined = (result["instances"] for result in results)
    assert isinstance(joined.gt_masks, LabelMapMasks)
    assert torch.equal(results[0]["image"], results[1]["image"])
    assert torch.equal(apart.gt_classes, joined.gt_classes)
    assert torch.equal(apart.gt_boxes.tensor, joined.gt_boxes.tensor)
    bitmasks = joined.gt_masks.to_bitmasks() if len(joined) else apart.gt_masks
    assert torch.equal(apart.gt_masks.tensor, bitmasks.tensor)


def test_rles_that_overlap_stay_apart(coco_entry):
    entry = with_rle(coco_entry, 0)
    entry["annotations"] = [entry["annotations"][0], copy.deepcopy(entry["annotations"][0])]
    masks = InstanceMapper(True, [], label_maps=True)(entry)["instances"].gt_masks
    assert isinstance(masks, BitMasks)
    assert torch.equal(masks.tensor[0], masks.tensor[1])


@pytest.mark.parametrize("counts", ["", "!!", [5, 5]])
def test_a_malformed_rle_is_named_with_its_annotation_all_the_same(coco_entry, counts):
    entry = with_rle(coco_entry, 0)
    entry["annotations"] = [entry["annotations"][0], {**entry["annotations"][0]}]
    entry["annotations"][1]["segmentation"] = {"size": [60, 80], "counts": counts}
    with pytest.raises(ValueError, match="annotation 1"):
        InstanceMapper(True, [], label_maps=True)(entry)
