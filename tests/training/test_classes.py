"""Classes from COCO files to results: a training, its evaluation, a later one, a prediction, and what is refused."""

import argparse
import json

import cv2
import numpy as np
import pytest
import torch
from coco_files import category, image, square, write_coco
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from torch import nn

from maskrcnn_plus.apps.predict_files.run import predict_files
from maskrcnn_plus.config import get_config
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.training import run

GREY = {"cell": 100, "dust": 200}
built = []


class ByGreyValue(nn.Module):
    """Finds a square of grey 100 as its first class, of grey 200 as its second; learns nothing."""

    def __init__(self, num_classes, input_format="BGR"):
        super().__init__()
        built.append(num_classes)
        self.weight = nn.Parameter(torch.zeros(num_classes))

    def forward(self, batch):
        if self.training:
            for entry in batch:
                assert entry["instances"].gt_classes.max() < len(self.weight)
            return {"loss": self.weight.square().sum()}
        return [{"instances": self.detect(entry)} for entry in batch]

    def detect(self, entry):
        masks = [entry["image"][0] == value for value in GREY.values()]
        present = [index for index, mask in enumerate(masks) if mask.any()]
        instances = Instances((entry["height"], entry["width"]))
        instances.pred_masks = torch.stack([masks[index] for index in present])
        edges = [torch.nonzero(mask) for mask in instances.pred_masks]
        boxes = [[*e.amin(0).flip(0).tolist(), *(e.amax(0).flip(0) + 1).tolist()] for e in edges]
        instances.pred_boxes, instances.pred_classes = Boxes(torch.tensor(boxes)), torch.tensor(present)
        instances.scores = torch.full((len(present),), 0.9)
        return instances


@pytest.fixture(autouse=True)
def _forget_data_sets():
    before = set(DatasetCatalog.list())
    built.clear()
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def write_split(folder, split, categories):
    """A json and an image of a square for each category that has a grey value."""
    folder = folder / split
    folder.mkdir(exist_ok=True)
    picture, annotations = np.zeros((40, 60), np.uint8), []
    for number, entry in enumerate((c for c in categories if c["name"] in GREY), start=1):
        annotations.append(square(number, 1, entry["id"]))
        x = 2 + 10 * number
        picture[4:12, x : x + 8] = GREY[entry["name"]]
    cv2.imwrite(str(folder / "1.png"), picture)
    return write_coco(folder, [image(1)], annotations, categories)


def coco_config(folder, train, val, **train_settings):
    config = get_config("coco/mask_rcnn_r50_fpn")
    for split, categories in (("train", train), ("val", val)):
        config.dataset[split].json, config.dataset[split].images = write_split(folder, split, categories)
    config.model = L(ByGreyValue)(num_classes="${dataset.num_classes}", input_format="BGR")
    for loader in (config.dataloader.train, config.dataloader.test):
        loader.mapper.augmentations, loader.num_workers = [], 0
    config.dataloader.train.total_batch_size = 1
    config.train.update(output_dir=str(folder / "out"), init_checkpoint="", device="cpu", max_iter=1, eval_period=0)
    config.train.update(train_settings)
    return config


def execute(config, resume=False, eval_only=False):
    return run(argparse.Namespace(resume=resume, eval_only=eval_only, config_file=""), config)


TRAIN = [category(0, "things"), category(3, "cell"), category(5, "dust")]
OTHER_NUMBERS = [category(1, "dust"), category(2, "cell")]


@pytest.fixture
def trained(tmp_path):
    """The folder of a run whose validation json numbers the classes otherwise, and its results."""
    results = execute(coco_config(tmp_path, TRAIN, OTHER_NUMBERS))
    return tmp_path, results


def test_a_training_drops_dummies_and_is_evaluated_by_the_names(trained):
    folder, results = trained
    assert built == [2]
    assert results["bbox"]["AP50"] == results["segm"]["AP50"] == pytest.approx(100)
    assert {key for key in results["segm"] if key.startswith("AP-")} == {"AP-cell", "AP-dust"}
    saved = torch.load(folder / "out/model_final.pth", weights_only=True)
    assert (saved["class_names"], saved["category_ids"]) == (["cell", "dust"], [3, 5])


def test_names_that_a_config_leaves_out_are_those_of_the_data(tmp_path):
    config = coco_config(tmp_path, TRAIN, TRAIN)
    config.dataset.thing_classes = None
    execute(config)
    assert built == [2]
    assert torch.load(tmp_path / "out/model_final.pth", weights_only=True)["class_names"] == ["cell", "dust"]


def test_a_later_evaluation_takes_the_classes_of_the_weights(trained):
    folder, _ = trained
    config = coco_config(folder, TRAIN, OTHER_NUMBERS, init_checkpoint=str(folder / "out/model_final.pth"))
    (folder / "train/a.json").unlink()
    assert execute(config, eval_only=True)["segm"]["AP50"] == pytest.approx(100)
    path = folder / "val/a.json"
    path.write_text(path.read_text().replace("dust", "hair"))
    with pytest.raises(ValueError, match=r"hair \(1\), but the classes are cell, dust"):
        execute(config, eval_only=True)


def test_a_prediction_has_the_names_and_ids_of_the_data_set(trained):
    folder, _ = trained
    config = coco_config(folder, TRAIN, OTHER_NUMBERS)
    predictor = Predictor(config, str(folder / "out/model_final.pth"))
    assert predictor.class_names == ["cell", "dust"]
    predict_files(predictor, [str(folder / "train/1.png")], folder / "results", formats=["coco", "csv"], progress=False)
    found = json.loads((folder / "results/predictions.json").read_text())
    truth = json.loads((folder / "train/a.json").read_text())["annotations"]
    both = [sorted((e["category_id"], *e["bbox"]) for e in entries) for entries in (found, truth)]
    assert both[0] == both[1]
    table = (folder / "results/csv/1.csv").read_text()
    assert "cell" in table
    assert "class 0" not in table


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_classes", 1, r"2 classes of the training data \(cell, dust\), but dataset\.num_classes=1"),
        ("thing_classes", ["cell"], r"dust \(1\), but the classes are cell\."),
    ],
)
def test_what_disagrees_is_refused_before_the_model_is_built(tmp_path, key, value, words):
    config = coco_config(tmp_path, TRAIN, OTHER_NUMBERS)
    config.dataset[key] = value
    with pytest.raises(ValueError, match=words):
        execute(config)
    assert not built
    assert not list((tmp_path / "out").glob("*.pth"))


def test_a_resumed_run_keeps_the_order_of_its_classes(trained):
    folder, _ = trained
    config = coco_config(folder, OTHER_NUMBERS, OTHER_NUMBERS, max_iter=2)
    for name in ("coco_train", "coco_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
    with pytest.raises(ValueError, match=r"cell, dust.*dust, cell"):
        execute(config, resume=True)
