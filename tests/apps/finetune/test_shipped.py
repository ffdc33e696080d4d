"""When a training starts from the shipped model of nuclei, and when rather not."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from maskrcnn_plus.apps.finetune.plan import Plan
from maskrcnn_plus.apps.finetune.shipped import find_shipped
from maskrcnn_plus.apps.finetune.weights import choose_start
from maskrcnn_plus.config import get_config
from maskrcnn_plus.data.statistics import PixelStatistics, Statistics

SOURCE = "maskrcnn_plus://nuclei"


def data_of(*names, count=40, diameter=20.0, side=256, aspect=1.1, fill=np.pi / 4, saturation=0.0, channels=1):
    """Figures of four images with `count` objects each."""
    total = 4 * count
    boxes = np.tile([diameter * aspect, diameter], (total, 1))
    pixels = PixelStatistics(
        num_images=4,
        unreadable=[],
        channels=Counter({channels: 4}),
        dtypes=Counter(uint8=4),
        intensity=np.tile([0.0, 250.0], (4, 1)),
        dark_background=1.0,
        mean_saturation=saturation,
    )
    return Statistics(
        class_names=list(names),
        num_images=4,
        num_objects=total,
        num_negatives=0,
        num_crowds=0,
        class_counts={name: total // len(names) for name in names},
        images_per_class=dict.fromkeys(names, 4),
        image_sizes=np.full((4, 2), side),
        objects_per_image=np.full(4, count),
        box_sizes=boxes,
        areas=(boxes.prod(axis=1) * fill).astype(np.int64),
        classes=np.arange(total) % len(names),
        image_index=np.repeat(np.arange(4), count),
        box_overlap=np.zeros(total),
        covered=np.zeros(total),
        pixels=pixels,
    )


COLOUR = dict(saturation=0.3, channels=3)


@pytest.mark.parametrize(
    "data",
    [
        data_of("nuclei", count=3, diameter=100, **COLOUR),
        data_of("Tumor nucleus", "lymphocyteNuclei", **COLOUR),
        data_of("cell", **COLOUR),
        data_of("T-cells", **COLOUR),
        data_of("object"),
        data_of("object", channels=3),  # grey images stored as RGB
    ],
)
@pytest.mark.usefixtures("nuclei_zoo")
def test_nuclei_and_what_resembles_them_start_from_the_shipped_model(data):
    source, why = find_shipped(Plan("common/any_data", []), data)
    assert source == SOURCE
    assert "shipped for nuclei" in why


@pytest.mark.parametrize(
    "data",
    [
        data_of("apple", **COLOUR),
        data_of("excellent", **COLOUR),
        data_of("nucleolus", **COLOUR),
        data_of("nucleus", "vessel"),
        data_of("nucleus", channels=5),
        data_of("object", count=9),
        data_of("object", diameter=60),
        data_of("object", aspect=2.0),
        data_of("square", fill=1.0),
        data_of("fibre", fill=0.3),
        data_of("cell", count=3, diameter=90, **COLOUR),
    ],
)
@pytest.mark.usefixtures("nuclei_zoo")
def test_other_domains_start_from_imagenet(data):
    assert find_shipped(Plan("common/any_data", []), data) is None


@pytest.mark.parametrize("given", ["train.init_checkpoint=", "model.backbone.out_channels=64"])
@pytest.mark.usefixtures("nuclei_zoo")
def test_what_the_user_decides_is_not_decided_again(given):
    assert find_shipped(Plan("common/any_data", [given]), data_of("nucleus")) is None


@pytest.mark.usefixtures("empty_zoo")
def test_without_a_shipped_model_there_is_none_to_start_from():
    assert find_shipped(Plan("common/any_data", []), data_of("nucleus")) is None


@pytest.mark.usefixtures("nuclei_zoo")
def test_images_without_objects_do_not_count_as_sparse():
    data = data_of("object")
    more = replace(data, objects_per_image=np.r_[data.objects_per_image, np.zeros(9, np.int64)], num_images=13)
    assert find_shipped(Plan("common/any_data", []), more) is not None


def test_the_config_names_the_source_and_no_file(nuclei_zoo, tmp_path):
    plan = Plan("common/any_data", ["dataset.thing_classes=[x]"])
    choose_start(plan, *find_shipped(plan, data_of("nucleus")))
    assert f"Starts from {SOURCE}: a checkpoint of this package, shipped for nuclei" in plan.lines()[0]
    plan.write(tmp_path / "config.py", [])
    text = (tmp_path / "config.py").read_text()
    assert f"described_config({SOURCE!r}).model" in text
    assert str(nuclei_zoo) not in text
    cfg = get_config(str(tmp_path / "config.py"))
    assert cfg.train.init_checkpoint == SOURCE
    assert cfg.model.backbone.bottom_up.name == "resnet18"
    assert json.loads((nuclei_zoo / "zoo.json").read_text())
