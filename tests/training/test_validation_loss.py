"""Losses of validation images: the model's own, image by image, and a training that does not notice them."""

import tiny
import torch
from detectron2.config import LazyCall as L
from torch import nn

from maskrcnn_plus.training.validation_loss import ValidationLoss


def images(count):
    """Dataset dicts of `tiny`'s images."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(count, 3, generator=generator)
    return [{"x": row, "y": row.sum(), "index": index} for index, row in enumerate(rows)]


class Mapper:
    """Takes an image as it is; in training it cannot use that of an index."""

    def __init__(self, is_train, bad=None):
        self.is_train = is_train
        self.bad = bad

    def __call__(self, record):
        assert self.is_train
        return None if record["index"] == self.bad else record


class Loader(list):
    """Batches of single images."""

    def __init__(self, dataset, mapper):
        super().__init__([[record] for record in dataset])


class Noisy(nn.Module):
    """A loss that depends on batch norm and on random numbers."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Linear(1, 1).eval()

    def forward(self, batch):
        assert self.training
        (entry,) = batch
        value = self.norm(entry["x"][None]).square().mean()
        return {"loss_box": value + torch.rand(()), "loss_mask": 2 * value}


def config(count, bad=None):
    cfg = tiny.config("unused")
    cfg.dataloader.test = L(Loader)(dataset=L(images)(count=count), mapper=L(Mapper)(is_train=False, bad=bad))
    return cfg


def test_the_mean_of_the_losses_of_each_image():
    model = Noisy()
    model.norm.running_mean.fill_(0.3)
    model.norm.running_var.fill_(2.0)
    model.eval()
    expected = [(((entry["x"] - 0.3) / (2.0 + 1e-5) ** 0.5).square().mean()) for entry in images(5)]
    value = torch.stack(expected).mean()
    torch.manual_seed(0)
    draw = torch.rand(())
    found = ValidationLoss(config(5), 100)(model)
    assert set(found) == {"val_loss", "val_loss_box", "val_loss_mask"}
    assert abs(found["val_loss_box"] - float(value + draw)) < 1e-5
    assert abs(found["val_loss_mask"] - float(2 * value)) < 1e-5
    assert abs(found["val_loss"] - found["val_loss_box"] - found["val_loss_mask"]) < 1e-9


def test_neither_the_model_nor_random_numbers_change():
    model = Noisy().train()
    model.frozen.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    ValidationLoss(config(4), 100)(model)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert model.norm.training
    assert not model.frozen.training


def test_images_are_spread_evenly_and_bad_ones_left_out():
    seen = []
    loss = ValidationLoss(config(9, bad=4), 3)
    seen = [example["index"] for example in loss._examples(loss._records)]
    assert [record["index"] for record in loss._records] == [0, 4, 8]
    assert seen == [0, 8]


def test_no_usable_image_gives_nothing():
    assert ValidationLoss(config(1, bad=0), 5)(Noisy()) == {}


class Both(tiny.Images):
    """The images of an evaluation, beside what a validation loss reads."""

    def __init__(self, dataset, mapper):
        super().__init__(3)


def test_a_training_with_it_equals_one_without(tmp_path):
    results = {}
    for name, number in (("with", 2), ("without", 0)):
        cfg = tiny.config(tmp_path / name, eval_period=2, validation_loss=number)
        cfg.dataloader.test = L(Both)(dataset=L(images)(count=3), mapper=L(Mapper)(is_train=False))
        results[name] = tiny.execute(cfg)
    assert results["with"].pop("val_loss") == results["with"].pop("val_loss_loss")
    assert results["with"] == results["without"]
    assert tiny.equal(*(tiny.load(tmp_path / name / "model_final.pth")["model"] for name in ("with", "without")))
    assert sum("val_loss" in entry for entry in tiny.entries(tmp_path / "with")) == 3
