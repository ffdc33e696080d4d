"""On 8-bit photographs the shipped COCO mappers give exactly what Detectron2's DatasetMapper gives."""

import random

import numpy as np
import pytest
import tifffile
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetMapper
from PIL import Image

from maskrcnn_plus.config import get_config

CONFIGS = {
    "coco/mask_rcnn_r50_fpn": {},
    "coco/mask_rcnn_r50_fpn_100ep_lsj": {"recompute_boxes": True},
    "zoo/torchvision_mask_rcnn_r50_fpn": {},
    "zoo/mmdet_mask_rcnn_r50_fpn": {},
}
SIZE = (150, 200)


def write(path, kind):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*SIZE, 4), dtype=np.uint8)
    pixels[40:90, 50:120] = pixels[40, 50]
    if kind == "exif.jpg":
        image = Image.fromarray(pixels[:, :, :3].swapaxes(0, 1).copy())
        exif = image.getexif()
        exif[274] = 6  # to be turned by a quarter
        image.save(path, exif=exif)
        return
    image = {
        "rgb": lambda: Image.fromarray(pixels[:, :, :3]),
        "grey": lambda: Image.fromarray(pixels[:, :, 0]),
        "rgba": lambda: Image.fromarray(pixels),
        "la": lambda: Image.fromarray(pixels[:, :, :2], "LA"),
        "palette": lambda: Image.fromarray(pixels[:, :, :3]).quantize(32),
        "bits": lambda: Image.fromarray(pixels[:, :, 0]).convert("1"),
        "cmyk": lambda: Image.fromarray(pixels[:, :, :3]).convert("CMYK"),
    }[kind.split(".")[0]]()
    image.save(path)


KINDS = (
    "rgb.jpg",
    "rgb.png",
    "grey.jpg",
    "grey.png",
    "rgba.png",
    "la.png",
    "palette.png",
    "exif.jpg",
    "bits.png",
    "cmyk.jpg",
)


def entry(path):
    rng = np.random.default_rng(1)
    annotations = []
    for number in range(6):
        width, height = rng.uniform(15, 60, 2)
        x, y = rng.uniform(0, SIZE[1] - width), rng.uniform(0, SIZE[0] - height)
        corners = [(x, y), (x + width, y), (x + width / 2, y + height), (x, y + height / 2)]
        bbox = [round(float(value), 2) for value in (x, y, width, height)]  # as COCO rounds them
        polygon = [round(float(value), 2) for point in corners for value in point]
        annotations.append(
            {"bbox": bbox, "bbox_mode": 1, "category_id": number, "segmentation": [polygon], "iscrowd": 0}
        )
    annotations.append({**annotations[0], "iscrowd": 1})
    return {"file_name": path, "image_id": 3, "height": SIZE[0], "width": SIZE[1], "annotations": annotations}


def mapped(mapper, record, seed):
    np.random.seed(seed)  # noqa: NPY002 - Detectron2's augmentations draw from the global generator
    random.seed(seed)
    return mapper(record)


def mappers(name, part):
    cfg = get_config(name)
    node = cfg.dataloader[part].mapper
    ours = instantiate(node)
    is_train = part == "train"
    theirs = DatasetMapper(
        is_train=is_train,
        augmentations=ours.augmentations.augs,
        image_format=cfg.model.input_format,
        use_instance_mask=is_train,
        **(CONFIGS[name] if is_train else {}),
    )
    return ours, theirs


@pytest.mark.parametrize(
    ("name", "kind"),
    [*(("coco/mask_rcnn_r50_fpn", kind) for kind in KINDS), *((name, "exif.jpg") for name in list(CONFIGS)[1:])],
)
def test_images_boxes_and_masks_are_detectron2s(tmp_path, name, kind):
    path = str(tmp_path / kind)
    write(path, kind)
    record = entry(path)
    ours, theirs = mappers(name, "train")
    for seed in range(3 if kind in ("rgb.jpg", "exif.jpg") else 1):
        found, expected = mapped(ours, record, seed), mapped(theirs, record, seed)
        assert found["image"].dtype == expected["image"].dtype
        assert torch.equal(found["image"], expected["image"])
        found, expected = found["instances"], expected["instances"]
        assert found.image_size == expected.image_size
        assert torch.equal(found.gt_classes, expected.gt_classes)
        assert torch.equal(found.gt_boxes.tensor, expected.gt_boxes.tensor)
        assert type(found.gt_masks) is type(expected.gt_masks)
        crops = [each.gt_masks.crop_and_resize(each.gt_boxes.tensor, 28) for each in (found, expected)]
        assert torch.equal(*crops)
    ours, theirs = mappers(name, "test")
    found, expected = ours(record), theirs(record)
    assert torch.equal(found["image"], expected["image"])
    assert (found["height"], found["width"]) == (expected["height"], expected["width"]) == SIZE


def test_both_orders_of_channels_are_among_them():
    assert {get_config(name).model.input_format for name in CONFIGS} == {"BGR", "RGB"}


@pytest.mark.parametrize("name", ["coco/mask_rcnn_r50_fpn", "nuclei/mask_rcnn_lite0_fpn"])
def test_no_depth_turns_white_or_black_and_no_band_is_lost(tmp_path, name):
    cfg = get_config(name)
    cfg.dataset.percentiles = None
    for part in ("train", "test"):
        cfg.dataloader[part].mapper.augmentations = []
    grey = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
    files = {
        "wide.png": lambda path: Image.fromarray(grey.astype(np.uint16) * 257).save(path),
        "wide.tif": lambda path: tifffile.imwrite(path, grey.astype(np.uint16) * 257),
        "float.tif": lambda path: tifffile.imwrite(path, grey.astype(np.float32) / 255),
    }
    five = str(tmp_path / "five.tif")
    tifffile.imwrite(five, np.stack([grey] * 5), photometric="minisblack", metadata={"axes": "CYX"})
    for part in ("train", "test"):
        mapper = instantiate(cfg.dataloader[part].mapper)
        for kind, save in files.items():
            path = str(tmp_path / kind)
            save(path)
            image = mapper({**entry(path), "annotations": []})["image"]
            assert (image - torch.from_numpy(grey).float()).abs().max() < 1e-3
        with pytest.raises(ValueError, match=r"five\.tif.*5 channels where 3 are wanted.*dataset\.channels"):
            mapper({**entry(five), "annotations": []})


def test_a_run_length_mask_a_truncated_file_and_a_negative_image_are_understood_or_named(tmp_path):
    path = str(tmp_path / "rgb.jpg")
    write(path, "rgb.jpg")
    record = entry(path)
    mapper, _ = mappers("coco/mask_rcnn_r50_fpn_100ep_lsj", "train")
    assert len(mapped(mapper, {**record, "annotations": []}, 0)["instances"].gt_masks) == 0
    runs = {"size": list(SIZE), "counts": [SIZE[0] * 50, SIZE[0] * 100, SIZE[0] * 50]}
    mixed = [{**record["annotations"][0], "segmentation": runs, "bbox": [50, 0, 100, 150]}, *record["annotations"][1:3]]
    assert (
        len(mapped(mappers("coco/mask_rcnn_r50_fpn", "train")[0], {**record, "annotations": mixed}, 0)["instances"])
        == 3
    )
    with open(path, "rb+") as file:
        file.truncate(2000)
    with pytest.raises(ValueError, match=r"rgb\.jpg: cannot be read .*truncated"):
        mapper(record)
